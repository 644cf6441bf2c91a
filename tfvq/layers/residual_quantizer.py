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
  """Quantises each vector, then its residual, and so on: L codes, whose codebook vectors are summed.

  The first codes carry the most information. For a lower rate, `decode` also takes the codes of the first levels alone.

  Reference: arXiv 2107.03312, section III.C.
  Deviation: only a fraction of the examples has a random number of levels (`dropout`); in the paper all have.

  Args:
    quantizers: L vector quantisers, one for each level, with the same K and D and the euclidean metric. Their own
      `gradient` is not used.
    dropout: Fraction of the training examples (the first dimension of z_e) that only the first n levels quantise, with
      n drawn uniformly from 1..L; in [0, 1]. Use it if codes of fewer levels will be decoded.
    gradient: As for `VectorQuantizer`.
    seed: Seed of the dropout.
    usage_window: Perplexity and codebook usage cover at least this many of the most recent vectors, >= 1.
    **kwargs: As for `Quantizer`.

  Input shape:
    z_e: Float [..., D]. `mask`: as for `Quantizer`.

  Output shape:
    z_q: Shape and dtype of z_e. The codes of a vector have the shape (L,).

  Training behaviour:
    Each level learns like a `VectorQuantizer` from the examples that it quantises; the losses of all levels are summed.
    In `quantize_vectors`, dropped levels have the code -1. `perplexity` is the exponential of the mean of the levels'
    entropies.

  Raises:
    ValueError: There is no level, K, D or the metric of the levels differ, or an argument is out of its range.

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
      raise ValueError("A residual quantiser needs at least one level, and the same K and D for all levels.")
    if any(level.metric != "euclidean" for level in quantizers):
      raise ValueError("The levels of a residual quantiser need metric='euclidean': the norm of a residual matters.")
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
    # As long as no code changes, an error of z_e is the error of every residual. Subtractions add rounding errors.
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
    """Draws the number of levels for each example of z [B, ..., D], int32 [B, 1, ...], or for z [D], a scalar."""
    rank = z.shape.rank
    batch_size = tf.shape(z)[0] if rank > 1 else 1
    (batch_sizes,) = sum_over_replicas(one_hot_replica(tf.cast(batch_size, tf.float32)))
    batch_sizes = tf.cast(batch_sizes, tf.int32)
    num_updates = tf.convert_to_tensor(self._num_updates)
    self._num_updates.assign_add(1)
    # Every replica draws for the global batch, and takes the numbers of its own part.
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
    """Vectors of codes of the first n levels, integers [..., n], n in 1..L -> float [..., D].

    Raises:
      ValueError: n is not in 1..L, or a code is out of its range. Only an eager call checks the range.
    """
    return super().decode(codes)

  def _decode(self, codes):
    if codes.shape[-1] is None:  # a graph for any number of levels
      codebooks = tf.concat([level.codebook for level in self.quantizers], axis=0)
      offsets = self.num_values * tf.range(tf.shape(codes)[-1])
      return tf.reduce_sum(tf.gather(codebooks, codes + offsets), axis=-2)
    # In the order of `_quantize`, so that both sums are equal to the bit.
    parts = [level._decode(codes[..., number]) for number, level in enumerate(self.quantizers[: codes.shape[-1]])]
    return functools.reduce(tf.add, parts)

  def _check_code_shape(self, shape):
    if shape[0] is not None and not 1 <= shape[0] <= len(self.quantizers):
      raise ValueError(f"{self.name}: a vector must have 1 to {len(self.quantizers)} codes, not {shape[0]}.")

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
