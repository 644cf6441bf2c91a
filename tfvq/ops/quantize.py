"""Vector quantisation as pure functions, for layers, export and loops of one's own."""

from typing import NamedTuple

import tensorflow as tf

from tfvq.ops.nearest_code import nearest_code


class LatentLosses(NamedTuple):
  """The two latent terms of eq. 3, scalars: means over all elements of z_e, zero for an empty batch."""

  codebook: tf.Tensor  # ||sg[z_e] - e||^2, moves the codebook to the encoder's output
  commitment: tf.Tensor  # ||z_e - sg[e]||^2, moves the encoder's output to the codebook


class Quantized(NamedTuple):
  """What `quantize` returns."""

  z_q: tf.Tensor  # [..., D], dtype of z_e; its gradient is copied straight through to z_e
  codes: tf.Tensor  # int32 [...]
  losses: LatentLosses


def quantize(z_e: tf.Tensor, codebook: tf.Tensor, mask: tf.Tensor | None = None) -> Quantized:
  """Replaces each vector by its nearest codebook vector, with the straight-through gradient.

  Reference: arXiv 1711.00937, eq. 1-3.
  Deviation: the latent losses are means over all elements; the paper sums over D.

  Args:
    z_e: Encoder outputs, float [..., D].
    codebook: Float [K, D].
    mask: Boolean [...], False at padded positions, which are quantised but count in no loss.

  Returns:
    A `Quantized` (z_q, codes, losses).
  """
  codes = nearest_code(tf.stop_gradient(z_e), tf.stop_gradient(codebook))
  e = tf.gather(codebook, codes)
  z = tf.cast(z_e, e.dtype)
  losses = LatentLosses(
    codebook=_masked_mean(tf.math.squared_difference(tf.stop_gradient(z), e), mask),
    commitment=_masked_mean(tf.math.squared_difference(z, tf.stop_gradient(e)), mask),
  )
  z_q = tf.cast(z + tf.stop_gradient(e - z), z_e.dtype)
  return Quantized(z_q, codes, losses)


def _masked_mean(values, mask):
  """Mean over all elements of `values` [..., D] where `mask` [...] is True; zero if there are none."""
  if mask is None:
    return tf.math.divide_no_nan(tf.reduce_sum(values), tf.cast(tf.size(values), values.dtype))
  mask = tf.cast(mask, values.dtype)[..., tf.newaxis]
  count = tf.reduce_sum(mask) * tf.cast(tf.shape(values)[-1], values.dtype)
  return tf.math.divide_no_nan(tf.reduce_sum(values * mask), count)
