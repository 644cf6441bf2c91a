"""Vector quantisation as pure functions, for layers, export and custom training loops."""

from typing import NamedTuple

import tensorflow as tf

from tfvq.ops.distributed import num_replicas, sum_over_replicas
from tfvq.ops.nearest_code import nearest_code

GRADIENTS = ("straight_through", "rotation")


class Quantized(NamedTuple):
  """The result of `quantize` and of the layers' `quantize_vectors`."""

  z_q: tf.Tensor  # [..., D], dtype of z_e
  codes: tf.Tensor  # int32 [...]; [..., *code_shape] from a layer with several codes per vector; -1 means no code
  losses: dict[str, tf.Tensor]  # scalars by name


def quantize(
  z_e: tf.Tensor, codebook: tf.Tensor, mask: tf.Tensor | None = None, gradient: str = "straight_through"
) -> Quantized:
  """Replaces each vector by its nearest codebook vector.

  A vector that is not finite has the code -1, and its z_q is the first codebook vector. It is left out of the losses
  and gets no gradient.

  Reference: arXiv 1711.00937, eq. 1-3.
  Deviation: the latent losses are means over all elements; the paper sums over D.

  Args:
    z_e: Encoder outputs, float [..., D].
    codebook: Float [K, D].
    mask: Boolean, False at padded positions, which are quantised but left out of the losses. It has the shape of the
      codes or of their leading dimensions.
    gradient: How the gradient of z_q reaches z_e: "straight_through" or "rotation", see `with_gradient`.

  Returns:
    A `Quantized` (z_q, codes, losses). The losses are the latent terms of eq. 3: means over the global batch, or zero
    if there is nothing to average. "codebook", ||sg[z_e] - e||^2, moves the codebook towards the encoder's output;
    "commitment", ||z_e - sg[e]||^2, moves the encoder's output towards the codebook.
  """
  codes = nearest_code(tf.stop_gradient(z_e), tf.stop_gradient(codebook))
  finite = codes >= 0
  e = tf.gather(codebook, tf.maximum(codes, 0))
  z = tf.where(finite[..., tf.newaxis], tf.cast(z_e, e.dtype), tf.stop_gradient(e))
  losses = latent_losses(z, e, finite & expand_mask(mask, codes))
  return Quantized(tf.cast(with_gradient(z, e, gradient), z_e.dtype), codes, losses)


def latent_losses(z: tf.Tensor, e: tf.Tensor, counted: tf.Tensor) -> dict[str, tf.Tensor]:
  """The latent losses that `quantize` returns.

  Args:
    z: Vectors, float [..., D].
    e: Their codebook vectors, of the same shape and dtype.
    counted: Boolean [...], False where a vector is ignored.
  """
  count = count_per_replica(counted, e.dtype)
  return {
    "codebook": masked_mean(tf.math.squared_difference(tf.stop_gradient(z), e), counted, count),
    "commitment": masked_mean(tf.math.squared_difference(z, tf.stop_gradient(e)), counted, count),
  }


def with_gradient(z: tf.Tensor, e: tf.Tensor, gradient: str) -> tf.Tensor:
  """Returns quantised vectors unchanged, with a gradient to the vectors that they replace.

  Args:
    z: The vectors, float [..., D].
    e: The quantised vectors, of the same shape and dtype; they get no gradient.
    gradient: "straight_through" copies the gradient. "rotation" (arXiv 2410.06424, section 4) writes e as |e| / |z|
      times a rotation of z, and differentiates this linear map of z with the map itself held constant. If z or e is
      zero, or they point in opposite directions, the rotation is undefined; terms that would divide by zero are then
      left out.

  Returns:
    e, float [..., D].
  """
  e = tf.stop_gradient(e)
  if gradient == "rotation":
    z = _rotated(z, tf.stop_gradient(z), e)
  # The difference is zero but has a gradient.
  return e + (z - tf.stop_gradient(z))


def _rotated(vectors, z, e):
  """Applies to `vectors` the linear map that rotates z to the direction of e and scales it to the norm of e."""
  z_unit, e_unit = unit_length(z), unit_length(e)
  bisector = unit_length(z_unit + e_unit)
  dot = lambda a, b: tf.reduce_sum(a * b, axis=-1, keepdims=True)
  rotated = vectors - 2 * bisector * dot(bisector, vectors) + 2 * e_unit * dot(z_unit, vectors)
  return tf.math.divide_no_nan(tf.norm(e, axis=-1, keepdims=True), tf.norm(z, axis=-1, keepdims=True)) * rotated


def unit_length(vectors: tf.Tensor) -> tf.Tensor:
  """Vectors divided by their norm, float [..., D]; those shorter than 1e-12 are divided by 1e-12."""
  return vectors * tf.math.rsqrt(tf.maximum(tf.reduce_sum(tf.square(vectors), axis=-1, keepdims=True), 1e-24))


def expand_mask(mask: tf.Tensor | None, codes: tf.Tensor) -> tf.Tensor:
  """Broadcasts a mask to the shape of codes [...]; it may lack the last dimensions. None means True everywhere."""
  if mask is None:
    return tf.ones_like(codes, tf.bool)
  mask = tf.cast(mask, tf.bool)
  mask = mask[(..., *[tf.newaxis] * (codes.shape.rank - mask.shape.rank))]
  return tf.broadcast_to(mask, tf.shape(codes))


def count_per_replica(mask: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
  """Number of True values on all replicas divided by the number of replicas, boolean [...] -> scalar of `dtype`."""
  (count,) = sum_over_replicas(tf.reduce_sum(tf.cast(mask, dtype)))
  return count / num_replicas()


def masked_mean(values: tf.Tensor, mask: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
  """Mean of values where the mask is True; zero if it never is.

  Args:
    values: Float [..., D].
    mask: Boolean [...].
    count: `count_per_replica(mask)`. With it, the mean of the results over the replicas is the mean over the global
      batch, even if the replicas have different numbers of vectors.

  Returns:
    A scalar.
  """
  return tf.math.divide_no_nan(tf.reduce_sum(tf.where(mask, tf.reduce_mean(values, axis=-1), 0)), count)
