"""The base class of quantisers that quantise each channel by itself."""

import abc
import math

import keras
import numpy as np
import tensorflow as tf

from tfvq.layers.quantizer import Quantizer
from tfvq.ops.nearest_code import is_finite
from tfvq.ops.quantize import Quantized, with_gradient

_MAX_VALUES = 2**24


class ScalarQuantizer(Quantizer):
  """Quantises each of C channels to a few fixed values in -1..1; one code stands for the values of all channels.

  There is no codebook. If D is not C, a learned linear map projects from D to C dimensions, and another one back.

  Subclasses implement `_bounded`, `_digits`, `_channel_margins`, and `_channel_losses` if they have losses.

  Args:
    levels: Number of values of each channel, C integers >= 2 whose product K is at most 2^24.
    embedding_dim: D, size of a vector; None means C.
    seed: Seed of the initial linear maps.
    **kwargs: As for `Quantizer`.
  """

  def __init__(self, levels: tuple[int, ...], embedding_dim: int | None = None, seed: int = 0, **kwargs):
    if not levels or min(levels) < 2 or math.prod(levels) > _MAX_VALUES:
      raise ValueError(f"levels must be integers >= 2 with a product of at most {_MAX_VALUES}, not {tuple(levels)}.")
    super().__init__(embedding_dim or len(levels), num_values=math.prod(levels), **kwargs)
    self.seed = seed
    self._levels = tuple(levels)
    # A code is a number in mixed radix. The first channel is its lowest digit.
    self._bases = tuple(math.prod(levels[:channel]) for channel in range(len(levels)))
    self.build((None, self.embedding_dim))

  @property
  def has_maps(self) -> bool:
    """Whether linear maps project from D to C dimensions and back."""
    return self.embedding_dim != len(self._levels)

  def _add_weights(self):
    if self.has_maps:
      dim, num_channels = self.embedding_dim, len(self._levels)
      initializer = lambda number: keras.initializers.GlorotUniform(self.seed + number)
      self._kernel_in = self.add_weight(shape=(dim, num_channels), initializer=initializer(0), name="kernel_in")
      self._bias_in = self.add_weight(shape=(num_channels,), initializer="zeros", name="bias_in")
      self._kernel_out = self.add_weight(shape=(num_channels, dim), initializer=initializer(1), name="kernel_out")
      self._bias_out = self.add_weight(shape=(dim,), initializer="zeros", name="bias_out")

  def adapt(self, z_e) -> None:
    """Initialises the linear maps, if there are any, from the principal components of data.

    The map to the channels gives the components, scaled to variance 1, in descending order of their original variance.
    The map back is the least-squares fit from the data's quantised channels to the data.

    Args:
      z_e: Float [..., D], more vectors than channels. Must be called before training, outside any `tf.function`.

    Raises:
      ValueError: There is no finite vector.
    """
    if not self.has_maps:
      return
    vectors = tf.reshape(tf.cast(z_e, self.variable_dtype), [-1, self.embedding_dim])
    vectors = tf.boolean_mask(vectors, is_finite(vectors)).numpy().astype(np.float64)
    if not len(vectors):
      raise ValueError(f"{self.name}: adapt needs at least one finite vector.")
    mean = vectors.mean(axis=0)
    variances, components = np.linalg.eigh((vectors - mean).T @ (vectors - mean) / len(vectors))
    order = np.argsort(-variances)[: len(self._levels)]
    deviations = np.sqrt(np.maximum(variances[order], 1e-6 * variances.max() + 1e-12))
    # If there are more channels than dimensions, the remaining ones are random mixtures of the components.
    mixtures = np.random.default_rng(self.seed).normal(size=(len(order), len(self._levels) - len(order)))
    mixtures /= np.linalg.norm(mixtures, axis=0)
    kernel = components[:, order] / deviations @ np.concatenate([np.eye(len(order)), mixtures], axis=1)
    self._kernel_in.assign(kernel)
    self._bias_in.assign(-mean @ kernel)
    values = self._values(self._digits(self._channels(tf.cast(vectors, self.variable_dtype)))).numpy()
    solution = np.linalg.lstsq(np.pad(values, [[0, 0], [0, 1]], constant_values=1), vectors, rcond=None)[0]
    self._kernel_out.assign(solution[:-1])
    self._bias_out.assign(solution[-1])

  def margin(self, z_e):
    z = tf.cast(z_e, self.variable_dtype)
    margins = self._channel_margins(np.asarray(self._channels(z), np.float64))
    if self.has_maps:
      # An error e of the vector changes a channel by at most ||e|| times the norm of the channel's column.
      columns = np.linalg.norm(np.asarray(self._kernel_in, np.float64), axis=0)
      sizes = np.linalg.norm(z, axis=-1)[..., np.newaxis] * columns + np.abs(self._bias_in)
      rounding = (self.embedding_dim + 4) * np.finfo(np.float32).eps * sizes
      margins = (margins - rounding) / np.maximum(columns, np.finfo(np.float64).tiny)
    return np.min(margins, axis=-1)

  @abc.abstractmethod
  def _bounded(self, channels) -> tf.Tensor:
    """The differentiable function of the channels that is rounded to their values, [..., C] -> [..., C]."""

  @abc.abstractmethod
  def _digits(self, channels) -> tf.Tensor:
    """Index of each channel's value, [..., C] -> int32 [..., C] in 0..levels-1."""

  @abc.abstractmethod
  def _channel_margins(self, channels) -> np.ndarray:
    """Size of the smallest error that changes a channel's value, float64 [..., C] -> float64 [..., C]."""

  def _channel_losses(self, channels, values, counted) -> dict[str, tf.Tensor]:
    """Losses by name, from channels and their values [..., C]; vectors with `counted` [...] False are left out."""
    del channels, values, counted
    return {}

  def _quantize(self, z, counted, training):
    del training
    channels = self._channels(z)
    digits = self._digits(channels)
    values = self._values(digits)
    losses = self._channel_losses(channels, values, counted)
    z_q = self._vectors(with_gradient(self._bounded(channels), values, "straight_through"))
    return Quantized(z_q, self._codes(digits), losses)

  def _encode(self, z, exact):
    del exact
    return self._codes(self._digits(self._channels(z)))

  def _decode(self, codes):
    digits = codes[..., tf.newaxis] // self._bases % self._levels
    return self._vectors(self._values(digits))

  def _codes(self, digits):
    return tf.reduce_sum(digits * self._bases, axis=-1)

  def _values(self, digits):
    """Evenly spaced values of digits, int32 [..., C] -> float [..., C] in -1..1."""
    return tf.cast(2 * digits, self.variable_dtype) / (tf.constant(self._levels, self.variable_dtype) - 1) - 1

  def _channels(self, z):
    """Vectors [..., D] -> channels [..., C]."""
    return tf.tensordot(z, self._kernel_in, axes=1) + self._bias_in if self.has_maps else z

  def _vectors(self, values):
    """Values of channels [..., C] -> vectors [..., D]."""
    return tf.tensordot(values, self._kernel_out, axes=1) + self._bias_out if self.has_maps else values

  def get_config(self):
    return {**super().get_config(), "embedding_dim": self.embedding_dim, "seed": self.seed}
