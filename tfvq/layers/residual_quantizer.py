"""A residual quantiser: each level quantises the residual of the levels before it."""

import functools

import keras
import numpy as np
import tensorflow as tf

from tfvq.layers.quantizer import Quantizer
from tfvq.layers.vector_quantizer import VectorQuantizer, check_choice
from tfvq.ops.distributed import one_hot_replica, replica_id, sum_over_replicas
from tfvq.ops.quantize import GRADIENTS, Quantized, with_gradient


@keras.saving.register_keras_serializable("tfvq")
class ResidualQuantizer(Quantizer):
  """Quantises each vector, then its residual, and so on: L codes, whose vectors are summed.

  The first codes are worth most: `decode` takes the codes of the first levels alone, for a lower rate.

  Reference: arXiv 2107.03312, section III.C.
  Deviation: dropout leaves out levels in some examples only (`dropout`); the paper does in all.

  Args:
    quantizers: L vector quantisers, one for each level, with the same K and D and the euclidean metric. Their own
      `gradient` is not used.
    dropout: Share of training examples, the first dimension of z_e, that are quantised by the first n levels only, n
      drawn uniformly from 1..L; 0 to 1. Only with dropout are fewer levels trained to be enough.
    gradient: As for `VectorQuantizer`.
    seed: Seed of the dropout.
    usage_window: Least number of most recent vectors over which perplexity and use are measured, >= 1.
    **kwargs: As for `Quantizer`.

  Input shape:
    z_e: Float [..., D]. `mask`: as for `Quantizer`.

  Output shape:
    z_q: Shape and dtype of z_e. The codes of a vector have the shape (L,).

  Training behaviour:
    Each level learns as a `VectorQuantizer` does, from the examples that it quantises; the losses of all levels are
    added up. Levels that are dropped have the code -1 in `quantize_vectors`. `perplexity` is exp of the codes' mean
    entropy.

  Raises:
    ValueError: There is no level, the levels do not fit together, or an argument is out of its range.

  Example:
    >>> quantizer = ResidualQuantizer([VectorQuantizer(64, 8, seed=seed) for seed in range(3)], dropout=0.5)
    >>> codes = quantizer.encode(tf.random.normal([2, 50, 8]))
    >>> codes.shape
    TensorShape([2, 50, 3])
    >>> quantizer.decode(codes[..., :1]).shape
    TensorShape([2, 50, 8])
  """

  def __init__(
    self,
    quantizers: list[VectorQuantizer],
    dropout: float = 0.0,
    gradient: str = "straight_through",
    seed: int = 0,
    usage_window: int = 2**17,
    **kwargs,
  ):
    if len({(level.num_values, level.embedding_dim) for level in quantizers}) != 1:
      raise ValueError("The levels of a residual quantiser need the same number of codes and the same dimension.")
    if any(level.metric != "euclidean" for level in quantizers):
      raise ValueError("The levels of a residual quantiser need the euclidean metric: a residual has any length.")
    if not 0 <= dropout <= 1:
      raise ValueError(f"dropout must lie in [0, 1], but is {dropout}.")
    check_choice("gradient", gradient, GRADIENTS)
    super().__init__(
      quantizers[0].embedding_dim,
      num_values=quantizers[0].num_values,
      code_shape=(len(quantizers),),
      usage_window=usage_window,
      **kwargs,
    )
    self.quantizers = list(quantizers)
    self._take_parts(self.quantizers)
    self.dropout = dropout
    self.gradient = gradient
    self.seed = seed
    self.build((None, self.embedding_dim))

  def _add_weights(self):
    if self.dropout:
      self._num_updates = self._add_statistic((), "zeros", "num_updates", dtype="int32")

  def adapt(self, z_e) -> None:
    residual = tf.cast(z_e, self.variable_dtype)
    for level in self.quantizers:
      level.adapt(residual)
      residual = residual - level.decode(tf.maximum(level.encode(residual), 0))

  def margin(self, z_e):
    # An error of z_e is an error of every residual while no code changes; so is the rounding of the subtractions.
    residual = tf.cast(z_e, self.variable_dtype)
    rounding = len(self.quantizers) * np.finfo(np.float32).eps * tf.norm(residual, axis=-1).numpy()
    margins = []
    for level in self.quantizers:
      margins.append(level.margin(residual))
      residual = residual - level.decode(level.encode(residual))
    return np.min(margins, axis=0) - rounding

  def _quantize(self, z, counted, training):
    num_levels = self._draw_num_levels(z) if training and self.dropout else len(self.quantizers)
    num_levels = tf.broadcast_to(num_levels, tf.shape(counted))
    residual, e = z, tf.zeros_like(z)
    codes, losses = [], {}
    for number, level in enumerate(self.quantizers):
      is_used = num_levels > number
      quantized = level._quantize(residual, counted & is_used, training and level.trainable)
      part = tf.where(is_used[..., tf.newaxis], tf.stop_gradient(quantized.z_q), 0)
      e, residual = e + part, residual - part
      codes.append(tf.where(is_used, quantized.codes, -1))
      losses |= {f"{name}_{number}": loss for name, loss in quantized.losses.items()}
    return Quantized(with_gradient(z, e, self.gradient), tf.stack(codes, axis=-1), losses)

  def _draw_num_levels(self, z):
    """For each example of z [B, ..., D] how many levels quantise it, int32 [B, 1, ...]; one number if z is [D]."""
    rank = z.shape.rank
    batch_size = tf.shape(z)[0] if rank > 1 else 1
    (batch_sizes,) = sum_over_replicas(one_hot_replica(tf.cast(batch_size, tf.float32)))
    batch_sizes = tf.cast(batch_sizes, tf.int32)
    num_updates = tf.convert_to_tensor(self._num_updates)
    self._num_updates.assign_add(1)
    # The same draws on every replica, each of which takes those of its part of the batch.
    draws = tf.random.stateless_uniform([tf.reduce_sum(batch_sizes)], [self.seed, num_updates])
    begin = tf.cumsum(batch_sizes, exclusive=True)[replica_id()]
    draws = tf.reshape(draws[begin : begin + batch_size], [-1, *[1] * (rank - 2)] if rank > 1 else [])
    num_levels = 1 + tf.cast(draws / self.dropout * len(self.quantizers), tf.int32)
    return tf.minimum(num_levels, len(self.quantizers))

  def _encode(self, z, exact):
    residual, codes = z, []
    for level in self.quantizers:
      codes.append(level._encode(residual, exact))
      residual = residual - level._decode(codes[-1])
    return tf.stack(codes, axis=-1)

  def decode(self, codes) -> tf.Tensor:
    """Vectors of codes, integers [..., n] of the first n levels, n in 1..L -> float [..., D].

    Raises:
      ValueError: There are no levels, or too many, or a code is out of its range. Only an eager call checks the range.
    """
    return super().decode(codes)

  def _decode(self, codes):
    if codes.shape[-1] is None:  # a graph for any number of levels
      codebooks = tf.concat([level.codebook for level in self.quantizers], axis=0)
      offsets = self.num_values * tf.range(tf.shape(codes)[-1])
      return tf.reduce_sum(tf.gather(codebooks, codes + offsets), axis=-2)
    # Added up in the order of `_quantize`: the same sums to the bit.
    parts = [level._decode(codes[..., number]) for number, level in enumerate(self.quantizers[: codes.shape[-1]])]
    return functools.reduce(tf.add, parts)

  def _check_code_shape(self, shape):
    if shape[0] is not None and not 1 <= shape[0] <= len(self.quantizers):
      raise ValueError(f"{self.name}: a vector has the codes of 1 to {len(self.quantizers)} levels, not of {shape[0]}.")

  def get_config(self):
    return {
      **super().get_config(),
      "quantizers": self._serialized(self.quantizers),
      "dropout": self.dropout,
      "gradient": self.gradient,
      "seed": self.seed,
    }

  @classmethod
  def from_config(cls, config):
    return cls(**{**config, "quantizers": cls._deserialized(config["quantizers"])})
