"""What all autoencoders here share: an encoder, a decoder, an output distribution, and how they are measured."""

import warnings
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfvq.models.likelihood_model import LikelihoodModel


class Reconstruction(NamedTuple):
  """What an autoencoder's `call` returns."""

  parameters: tf.Tensor  # of the output distribution, float [B, ...]
  latent_nats: tf.Tensor  # what the latents cost in the bound of log p(x), nats per datum, float [B]


class Autoencoder(LikelihoodModel):
  """An encoder and a decoder with a bottleneck between them, trained on a bound of the data's likelihood.

  Subclasses supply the bottleneck: `call(x, training) -> Reconstruction`, and `reconstruct`.

  Args:
    encoder: Keras model, data [B, ...] -> z_e.
    decoder: Keras model, latents -> parameters of the output distribution.
    distribution: Output distribution, see `tfvq.models.output_distributions`.
    **kwargs: As for `keras.Model`.
  """

  def __init__(self, encoder, decoder, distribution, **kwargs):
    super().__init__(**kwargs)
    self.encoder = encoder
    self.decoder = decoder
    self.distribution = distribution
    self._warned = False
    self._psnr_db = PeakSignalToNoiseRatio()
    self._bits_per_dim = keras.metrics.Mean(name="bits_per_dim") if distribution.discrete else None

  def example_losses(self, x, y_pred, training):
    """Negative log-likelihood of each example in nats per data value, float [B]."""
    del training
    log_prob = self.distribution.log_prob(y_pred.parameters, tf.cast(x, y_pred.parameters.dtype))
    log_prob = mean_per_example(log_prob)
    latent_nats = tf.cast(y_pred.latent_nats, log_prob.dtype)
    self.update_metrics(x, y_pred.parameters, log_prob - latent_nats / num_values(x))
    return -log_prob

  def update_metrics(self, x, parameters, bound_per_value):
    """Counts a batch: its parameters, and the bound of log p(x) in nats per data value, float [B]."""
    self._psnr_db.update_state(x, self.distribution.mode(parameters))
    if self._bits_per_dim is not None:
      self._bits_per_dim.update_state(-bound_per_value / np.log(2))

  def is_flagged(self, x):
    return tf.reduce_max(x, axis=list(range(1, x.shape.rank))) > 1

  def check_flagged(self, share):
    if not share and not self._warned:
      self._warned = True
      warnings.warn(
        f"No value of the images for {self.name} is above 1: give values in 0..255, not 0..1.", stacklevel=2
      )

  def input_signature(self):
    return [keras.InputSpec(shape=self.encoder.input_shape, dtype="float32")]

  def get_config(self):
    serialize = keras.saving.serialize_keras_object
    return {
      **super().get_config(),
      "encoder": serialize(self.encoder),
      "decoder": serialize(self.decoder),
      "distribution": serialize(self.distribution),
    }

  @classmethod
  def from_config(cls, config):
    parts = ("encoder", "quantizer", "decoder", "distribution")
    return cls(
      **{key: keras.saving.deserialize_keras_object(value) if key in parts else value for key, value in config.items()}
    )


@keras.saving.register_keras_serializable("tfvq")
class PeakSignalToNoiseRatio(keras.metrics.Mean):
  """10 log10(255^2 / mean squared error) in dB over all values since the last reset."""

  def __init__(self, name: str = "psnr_db", **kwargs):
    super().__init__(name=name, **kwargs)

  def update_state(self, x, reconstruction, sample_weight=None):
    """Adds a batch: data and its reconstruction, same shape, in 0..255."""
    error = tf.math.squared_difference(tf.cast(x, tf.float32), tf.cast(reconstruction, tf.float32))
    super().update_state(mean_per_example(error), sample_weight)

  def result(self):
    return 10 * (np.log10(255**2) - tf.math.log(super().result()) / np.log(10))


def mean_per_example(values: tf.Tensor) -> tf.Tensor:
  """Means over all dimensions but the first, [B, ...] -> [B]."""
  return tf.reduce_mean(values, axis=list(range(1, values.shape.rank)))


def num_values(x: tf.Tensor) -> int:
  """Values of an example of data [B, ...]."""
  return int(np.prod(x.shape[1:]))
