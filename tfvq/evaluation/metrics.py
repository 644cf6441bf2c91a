"""Metrics of models and codes on data that were not used for training."""

import lzma
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tqdm


class Metric(NamedTuple):
  """A metric of metrics.json, and how reports show it."""

  name: str
  title: str
  unit: str = ""  # shown after the value; "%" shows a fraction as a percentage

  def format(self, value) -> str:
    """A value with its unit."""
    if self.unit == "%":
      return f"{100 * value:.1f} %"
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f} {self.unit}".rstrip()


# The metrics that `code_statistics` returns, and that of the prior.
CODE_METRICS = (
  Metric("codes_used_fraction", "codes in use", "%"),
  Metric("perplexity", "perplexity of the codes"),
  Metric("uniform_bits_per_code", "bits per code, uniform"),
  Metric("order0_bits_per_code", "bits per code, order 0"),
  Metric("xz_bits_per_code", "bits per code, xz -9"),
  Metric("prior_bits_per_code", "bits per code, prior"),
)


def to_uint8(images) -> np.ndarray:
  """Rounds and clips values to uint8, same shape."""
  return tf.cast(tf.round(tf.clip_by_value(tf.cast(images, tf.float32), 0.0, 255.0)), tf.uint8).numpy()


def psnr_db(batches, reconstruct) -> float:
  """10 log10(255^2 / mean squared error) in dB, over all values of all batches, with reconstructions rounded to uint8.

  Args:
    batches: Iterable of uint8 arrays.
    reconstruct: Function from such an array to its reconstruction, in 0..255.
  """
  squared_error, num_values = 0.0, 0
  for batch in batches:
    error = np.asarray(batch, np.float64) - to_uint8(reconstruct(batch))
    squared_error += np.sum(error**2)
    num_values += error.size
  return float(10 * np.log10(255**2 / (squared_error / num_values)))


def code_statistics(codes: np.ndarray, num_values: int) -> dict[str, float]:
  """Usage statistics of codes, and bits per code of three simple codings.

  Args:
    codes: Integers [N, ...] in 0..K-1.
    num_values: K, at most 65,536.

  Returns:
    `codes_used_fraction` (0..1), `perplexity` (1..K), `uniform_bits_per_code` (log2 K), `order0_bits_per_code` (the
    entropy of the histogram of these codes) and `xz_bits_per_code` (`xz -9` of the codes as uint16 in raster order).
  """
  counts = np.bincount(codes.ravel(), minlength=num_values)
  probabilities = counts[counts > 0] / codes.size
  entropy_bits = float(-np.sum(probabilities * np.log2(probabilities)))
  compressed = lzma.compress(codes.astype("<u2").tobytes(), preset=9)
  return {
    "codes_used_fraction": float(np.mean(counts > 0)),
    "perplexity": 2**entropy_bits,
    "uniform_bits_per_code": float(np.log2(num_values)),
    "order0_bits_per_code": entropy_bits,
    "xz_bits_per_code": 8 * len(compressed) / codes.size,
  }


def bits_per_value(model, inputs) -> float:
  """Mean negative log-likelihood in bits per value.

  Args:
    model: A `tfvq.models.AutoregressiveModel`.
    inputs: Iterable of batches as for `fit`: values, or ((values, condition),).
  """
  return mean_bits(model.log_prob, inputs)


def mean_bits(log_prob, inputs) -> float:
  """Mean negative log-likelihood in bits per value.

  Args:
    log_prob: Function from values [B, ...] and a condition or None to nats, float [B].
    inputs: As for `bits_per_value`.
  """
  log_prob = tf.function(log_prob, reduce_retracing=True)
  nll_nats, num_values = 0.0, 0
  for batch in tqdm.tqdm(inputs, desc="likelihood", unit="batch", dynamic_ncols=True):
    x, condition = batch[0] if isinstance(batch, tuple) else (batch, None)
    nll_nats -= float(tf.reduce_sum(tf.cast(log_prob(x, condition), tf.float64)))
    num_values += int(tf.size(x))
  return nll_nats / num_values / np.log(2)
