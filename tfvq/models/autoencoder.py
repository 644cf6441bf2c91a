"""What all autoencoders here share: an encoder, a decoder, an output distribution, and how they are measured."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfvq.ops.distributed import share_of_loss


class Reconstruction(NamedTuple):
  """What an autoencoder's `call` returns."""

  parameters: tf.Tensor  # of the output distribution
  latent_nats: tf.Tensor  # what the latents cost in the bound of log p(x), nats per datum, float [B] or a scalar


class Autoencoder(keras.Model):
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
    self._psnr_db = PeakSignalToNoiseRatio()
    self._bits_per_dim = keras.metrics.Mean(name="bits_per_dim") if distribution.discrete else None

  def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
    """Negative log-likelihood in nats per data value, plus the losses that the bottleneck added."""
    del y, sample_weight
    log_prob = self.distribution.log_prob(y_pred.parameters, tf.cast(x, y_pred.parameters.dtype))
    self.update_metrics(x, y_pred.parameters, tf.reduce_mean(log_prob), y_pred.latent_nats)
    return share_of_loss(-tf.reduce_mean(log_prob) + sum(self.losses))

  def update_metrics(self, x, parameters, log_prob_per_value, latent_nats):
    """Counts a batch: log p(x | z) in nats per data value, and the latents' cost in nats per datum."""
    self._psnr_db.update_state(x, self.distribution.mode(parameters), sample_weight=tf.shape(x)[0])
    if self._bits_per_dim is not None:
      bound = log_prob_per_value - tf.reduce_mean(latent_nats) / np.prod(x.shape[1:])
      self._bits_per_dim.update_state(-bound / np.log(2), sample_weight=tf.shape(x)[0])

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
    super().update_state(tf.reduce_mean(error), sample_weight)

  def result(self):
    return 10 * (np.log10(255**2) - tf.math.log(super().result()) / np.log(10))
