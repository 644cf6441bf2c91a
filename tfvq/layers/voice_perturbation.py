"""Data augmentation of speech: spectrograms as of other voices."""

import keras
import numpy as np
import tensorflow as tf

from tfvq.layers.log_mel import LOWEST_HZ
from tfvq.ops.distributed import replica_seed
from tfvq.ops.precision import to_full_precision


@keras.saving.register_keras_serializable("tfvq")
class VoicePerturbation(keras.layers.Layer):
  """Scales the frequencies of log-mel spectrograms by random factors, and adds a smooth random offset over the bands.

  All frames of a clip get the same change. It hides the speaker and the room from the encoder, so that the codes carry
  less of them and more of what is said.

  Reference: arXiv 2110.14513 (information perturbation: of formants, pitch and levels).
  Deviation: the spectrogram is perturbed instead of the audio, so that formants and pitch change by the same factor.

  Args:
    scale: Frequencies are multiplied by e^u, with u uniform in -scale..scale, >= 0.
    level: Standard deviation of each of four cosines over the bands (0 to 1.5 periods) that are added, in the units of
      the spectrogram, >= 0.
    sample_rate_hz: Sample rate of the audio.
    seed: Seed of the random changes; None for a random seed.
    **kwargs: As for `keras.layers.Layer`.

  Raises:
    ValueError: `scale` or `level` is negative.

  Input shape:
    Log-mel spectrograms as `tfvq.layers.LogMel` makes them, float [B, F, num_bands].

  Output shape:
    Shape and dtype of the input.

  Training behaviour:
    Nothing is trained. The output is the input unless `training` and `trainable` are True; freezing the encoder that
    contains the layer sets the latter to False.

  Example:
    >>> spectra = tf.random.normal([2, 50, 80])
    >>> VoicePerturbation(0.2)(spectra, training=True).shape
    TensorShape([2, 50, 80])
  """

  def __init__(
    self, scale: float = 0.2, level: float = 0.1, sample_rate_hz: int = 16_000, seed: int | None = None, **kwargs
  ):
    super().__init__(**kwargs)
    if scale < 0 or level < 0:
      raise ValueError(f"scale and level must not be negative, but are {scale} and {level}.")
    self.scale = scale
    self.level = level
    self.sample_rate_hz = sample_rate_hz
    self.seed = seed
    self._seeds = keras.random.SeedGenerator(seed)
    self.built = True

  def call(self, spectra, training=False):
    if not (training and self.trainable):
      return spectra
    dtype, spectra = spectra.dtype, to_full_precision(spectra)
    batch_size, num_bands = tf.shape(spectra)[0], spectra.shape[-1]
    seed = replica_seed(self._seeds)
    scale = tf.random.stateless_uniform([batch_size, 1], seed, -self.scale, self.scale, spectra.dtype)
    scaled = tf.einsum("bfi,boi->bfo", spectra, self._interpolation(num_bands, tf.exp(scale)))
    cosines = np.cos(np.pi * np.outer(np.arange(4), np.arange(num_bands) + 0.5) / num_bands)
    seed = replica_seed(self._seeds)
    levels = self.level * tf.random.stateless_normal([batch_size, 4], seed, dtype=spectra.dtype)
    return tf.cast(scaled + tf.matmul(levels, tf.constant(cosines, levels.dtype))[:, tf.newaxis], dtype)

  def _interpolation(self, num_bands, factors):
    """Weights that interpolate each band from the bands at scaled frequencies, [B, 1] -> [B, num_bands, num_bands]."""
    ends = 1127 * np.log1p(np.array([LOWEST_HZ, self.sample_rate_hz / 2]) / 700)
    width = (ends[1] - ends[0]) / (num_bands + 1)
    centres_hz = 700 * np.expm1((ends[0] + width * (np.arange(num_bands) + 1)) / 1127)
    places = (1127 * tf.math.log1p(factors * tf.constant(centres_hz / 700, factors.dtype)) - ends[0]) / width - 1
    places = tf.clip_by_value(places, 0.0, num_bands - 1.0)[..., tf.newaxis]
    return tf.maximum(1 - tf.abs(places - tf.range(num_bands, dtype=places.dtype)), 0)

  def get_config(self):
    return {
      **super().get_config(),
      "scale": self.scale,
      "level": self.level,
      "sample_rate_hz": self.sample_rate_hz,
      "seed": self.seed,
    }
