"""Vector quantisation as pure functions, for layers, export and custom training loops."""

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
  codes: tf.Tensor  # int32 [...]; -1 where z_e is not finite
  losses: LatentLosses


def quantize(z_e: tf.Tensor, codebook: tf.Tensor, mask: tf.Tensor | None = None) -> Quantized:
  """Replaces each vector by its nearest codebook vector, with the straight-through gradient.

  A vector that is not finite has the code -1. It is ignored in the losses, its z_q is the first codebook vector, and it
  gets no gradient.

  Reference: arXiv 1711.00937, eq. 1-3.
  Deviation: the latent losses are means over all elements; the paper sums over D.

  Args:
    z_e: Encoder outputs, float [..., D].
    codebook: Float [K, D].
    mask: Boolean, False at padded positions, which are quantised but ignored in the losses. It has the shape of the
      codes or of their leading dimensions.

  Returns:
    A `Quantized` (z_q, codes, losses).
  """
  codes = nearest_code(tf.stop_gradient(z_e), tf.stop_gradient(codebook))
  finite = codes >= 0
  e = tf.gather(codebook, tf.maximum(codes, 0))
  z = tf.where(finite[..., tf.newaxis], tf.cast(z_e, e.dtype), tf.stop_gradient(e))
  counted = finite & expand_mask(mask, codes)
  losses = LatentLosses(
    codebook=_masked_mean(tf.math.squared_difference(tf.stop_gradient(z), e), counted),
    commitment=_masked_mean(tf.math.squared_difference(z, tf.stop_gradient(e)), counted),
  )
  # Exactly the codebook vector: the added difference is zero, and carries the gradient.
  z_q = tf.stop_gradient(e) + (z - tf.stop_gradient(z))
  return Quantized(tf.cast(z_q, z_e.dtype), codes, losses)


def expand_mask(mask: tf.Tensor | None, codes: tf.Tensor) -> tf.Tensor:
  """Broadcasts a mask along missing last dimensions to the shape of codes [...]; None gives True everywhere."""
  if mask is None:
    return tf.ones_like(codes, tf.bool)
  mask = tf.cast(mask, tf.bool)
  mask = mask[(..., *[tf.newaxis] * (codes.shape.rank - mask.shape.rank))]
  return tf.broadcast_to(mask, tf.shape(codes))


def _masked_mean(values, mask):
  """Mean over all elements of `values` [..., D] where `mask` [...] is True; zero if there are none."""
  per_vector = tf.where(mask, tf.reduce_mean(values, axis=-1), 0)
  return tf.math.divide_no_nan(tf.reduce_sum(per_vector), tf.reduce_sum(tf.cast(mask, values.dtype)))
