"""The figures of a run, measured on data that no training has seen."""

import lzma

import numpy as np
import tensorflow as tf

from tfvq.models import PixelCNN

_BATCH_SIZE = 64


def measure(run, split: str) -> dict[str, float]:
  """All figures that the run's models allow on a split.

  Args:
    run: A `tfvq.training.stages.Run` whose trainings are done.
    split: Name of a split of its data.

  Returns:
    `reconstruction_psnr_db` and `autoencoder_bits_per_dim` of an autoencoder (the latter if its output distribution is
    discrete), `code_statistics` of a VQ-VAE's codes, `prior_bits_per_code` of a prior over codes, `bits_per_dim` of a
    model of pixels.
  """
  figures = {}
  source = run.task.source
  if "autoencoder" in run.task.stages:
    images = (batch["image"] for batch in source.batches(split, _BATCH_SIZE))
    figures["reconstruction_psnr_db"] = psnr_db(images, tf.function(run.autoencoder.reconstruct, reduce_retracing=True))
    if run.autoencoder.distribution.discrete:
      run.autoencoder.compile()
      batches = source.batches(split, _BATCH_SIZE).map(lambda batch: batch["image"])
      figures["autoencoder_bits_per_dim"] = run.autoencoder.evaluate(batches, verbose=0, return_dict=True)[
        "bits_per_dim"
      ]
  if run.has_codes:
    figures |= code_statistics(run.values.splits[split]["codes"], run.manifest["num_embeddings"])
  if "prior" in run.task.stages:
    bits = bits_per_value(run.prior, (run.prior_inputs(batch) for batch in run.values.batches(split, _BATCH_SIZE)))
    figures["prior_bits_per_code" if run.has_codes else "bits_per_dim"] = bits
  return figures


def to_uint8(images) -> np.ndarray:
  """Rounds and clips to uint8."""
  return tf.cast(tf.round(tf.clip_by_value(tf.cast(images, tf.float32), 0.0, 255.0)), tf.uint8).numpy()


def psnr_db(batches, reconstruct) -> float:
  """10 log10(255^2 / mean squared error) in dB, the error over all values of all batches, the output rounded to uint8.

  Args:
    batches: Iterable of uint8 arrays.
    reconstruct: Function from such an array to its reconstruction.
  """
  squared_error, num_values = 0.0, 0
  for batch in batches:
    error = np.asarray(batch, np.float64) - to_uint8(reconstruct(batch))
    squared_error += np.sum(error**2)
    num_values += error.size
  return float(10 * np.log10(255**2 / (squared_error / num_values)))


def code_statistics(codes: np.ndarray, num_embeddings: int) -> dict[str, float]:
  """What can be said of codes by themselves.

  Args:
    codes: Integers [N, ...] in 0..K-1.
    num_embeddings: K.

  Returns:
    `codes_used_fraction` (0..1), `perplexity` (1..K), and bits per code by three simple codings:
    `uniform_bits_per_code` (log2 K), `order0_bits_per_code` (the entropy of these codes' own histogram) and
    `xz_bits_per_code` (`xz -9` of the codes as uint16 in raster order).
  """
  counts = np.bincount(codes.ravel(), minlength=num_embeddings)
  probabilities = counts[counts > 0] / codes.size
  entropy_bits = float(-np.sum(probabilities * np.log2(probabilities)))
  compressed = lzma.compress(codes.astype("<u2").tobytes(), preset=9)
  return {
    "codes_used_fraction": float(np.mean(counts > 0)),
    "perplexity": 2**entropy_bits,
    "uniform_bits_per_code": float(np.log2(num_embeddings)),
    "order0_bits_per_code": entropy_bits,
    "xz_bits_per_code": 8 * len(compressed) / codes.size,
  }


def bits_per_value(model: PixelCNN, inputs) -> float:
  """Mean negative log-likelihood in bits per value.

  Args:
    model: An autoregressive model.
    inputs: Iterable of what its `fit` takes: values, or ((values, condition),).
  """
  log_prob = tf.function(model.log_prob, reduce_retracing=True)
  nll_nats, num_values = 0.0, 0
  for batch in inputs:
    x, condition = batch[0] if isinstance(batch, tuple) else (batch, None)
    nll_nats -= float(tf.reduce_sum(tf.cast(log_prob(x, condition), tf.float64)))
    num_values += int(tf.size(x))
  return nll_nats / num_values / np.log(2)
