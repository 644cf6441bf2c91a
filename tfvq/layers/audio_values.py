"""Converts audio to the integers that a WaveNet models, and back."""

import keras
import numpy as np
import tensorflow as tf

from tfvq.ops.mu_law import mu_law_decode, mu_law_encode
from tfvq.ops.precision import full_precision
from tfvq.ops.subbands import join_bands, split_into_bands

_CLIPPED_FRACTION = 1e-4  # of a band's steps: a range for the few loudest ones would cost all others resolution


@keras.saving.register_keras_serializable("tfvq")
class AudioValues(keras.layers.Layer):
  """Quantises audio samples, or the steps of critically sampled sub-bands, to integers.

  Args:
    num_bands: N, number of sub-bands, >= 1; 1 means no split.
    num_values: K, number of values of each band, >= 2. Up to 256 values use mu-law companding; more are linear.
    **kwargs: As for `keras.layers.Layer`.

  Raises:
    ValueError: A size is out of its range.

  Input shape:
    Audio, float [B, T] in -1..1, T a multiple of N.

  Output shape:
    int32 [B, T / N, N] in 0..K-1.

  Training behaviour:
    Nothing is trained. `adapt` sets the level of each band: the magnitude that the largest values stand for.

  Example:
    >>> values = AudioValues(num_bands=4)(tf.zeros([2, 64]))
    >>> values.shape
    TensorShape([2, 16, 4])
  """

  def __init__(self, num_bands: int = 1, num_values: int = 256, **kwargs):
    # Audio needs full precision, even if the networks compute in 16 bits.
    dtype = full_precision(keras.config.dtype_policy().variable_dtype)
    super().__init__(**{"dtype": dtype, **kwargs, "trainable": False})
    if num_bands < 1 or num_values < 2:
      raise ValueError(f"num_bands must be positive and num_values 2 or more, not {num_bands}, {num_values}.")
    self.num_bands = num_bands
    self.num_values = num_values
    self.levels = self.add_weight(shape=(num_bands,), initializer="ones", name="levels", dtype="float32")
    self.built = True

  def adapt(self, audio) -> None:
    """Sets the level of each band to the magnitude that one in 10,000 of its steps exceeds; 1 without sub-bands.

    Args:
      audio: Float [B, T] in -1..1, T a multiple of N.
    """
    if self.num_bands > 1:
      bands = split_into_bands(tf.cast(audio, tf.float32), self.num_bands)
      self.levels.assign(np.maximum(np.quantile(np.abs(bands), 1 - _CLIPPED_FRACTION, axis=(0, 1)), 1e-3))

  def call(self, audio):
    audio = tf.cast(audio, tf.float32)
    bands = split_into_bands(audio, self.num_bands) if self.num_bands > 1 else audio[..., tf.newaxis]
    bands /= tf.convert_to_tensor(self.levels)
    if self.num_values <= 256:
      return mu_law_encode(bands, self.num_values)
    values = tf.round((tf.clip_by_value(bands, -1.0, 1.0) + 1) * ((self.num_values - 1) / 2))
    return tf.cast(values, tf.int32)

  def bands(self, values) -> tf.Tensor:
    """Converts values, integers [B, T / N, N], to sub-bands, float32 of the same shape."""
    if self.num_values <= 256:
      bands = mu_law_decode(values, self.num_values)
    else:
      bands = tf.cast(values, tf.float32) * (2 / (self.num_values - 1)) - 1
    return bands * tf.convert_to_tensor(self.levels)

  def decode(self, values) -> tf.Tensor:
    """Converts values, integers [B, T / N, N], to audio, float32 [B, T], mostly in -1..1."""
    return self.join(self.bands(values))

  def join(self, bands) -> tf.Tensor:
    """Joins sub-bands, float32 [B, T / N, N], to audio, [B, T]."""
    return join_bands(bands) if self.num_bands > 1 else bands[..., 0]

  def load_own_variables(self, store):
    # Older files of WaveNets lack the levels, which then keep their values.
    if len(store):
      super().load_own_variables(store)

  def get_config(self):
    return {**super().get_config(), "num_bands": self.num_bands, "num_values": self.num_values}
