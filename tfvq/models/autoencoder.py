"""The base class of all autoencoders: encoder, decoder, training and metrics."""

import abc

import keras
import numpy as np
import tensorflow as tf

from tfvq.models.likelihood_model import LikelihoodModel, split_condition
from tfvq.models.serialization import deserialized_parts, serialized_parts


class Autoencoder(LikelihoodModel):
  """An encoder and a decoder with a bottleneck between them, trained by a lower bound of the data's log-likelihood.

  Subclasses implement `bottleneck` and `reconstruct`.

  Args:
    encoder: Keras model, data [B, ...] -> z_e.
    decoder: `tfvq.models.Decoder`, the distribution of data given latents.
    **kwargs: As for `keras.Model`.

  Input shape:
    x: data [B, ...]; or a pair (x, condition) if the decoder has `conditions`, where condition is a dict of tensors.

  Output shape:
    A dict: "log_prob", log p(x | z) in nats, float [B]; "latent_nats", float [B], which is subtracted from it in the
    bound of log p(x); and, if the decoder has a mode, "mode", float of the shape of x.
  """

  def __init__(self, encoder, decoder, **kwargs):
    super().__init__(**{**kwargs, "autocast": False})  # no cast of the data to 16 bits
    self.encoder = encoder
    self.decoder = decoder
    self._psnr_db = PeakSignalToNoiseRatio() if decoder.has_mode else None
    self._bits_per_dim = keras.metrics.Mean(name="bits_per_dim") if decoder.discrete else None

  @abc.abstractmethod
  def bottleneck(self, x, training=False) -> tuple[tf.Tensor, tf.Tensor]:
    """Latents of data and their cost in the bound, [B, ...] -> (z float [B, ...], nats float [B])."""

  def call(self, inputs, training=False):
    x, condition = split_condition(inputs)
    z, latent_nats = self.bottleneck(x, training)
    log_prob, mode = self.decoder.log_prob_and_mode(x, z, condition, training)
    outputs = {"log_prob": log_prob, "latent_nats": tf.cast(latent_nats, log_prob.dtype)}
    return outputs if mode is None else {**outputs, "mode": mode}

  def example_losses(self, x, y_pred, training):
    """Negative log-likelihood of each example in nats per data value, float [B]."""
    del training
    x, _ = split_condition(x)
    self.update_metrics(x, y_pred["log_prob"] - y_pred["latent_nats"], y_pred.get("mode"))
    return -y_pred["log_prob"] / num_values(x)

  def update_metrics(self, x, bound_nats, mode):
    """Updates the metrics with a batch.

    Args:
      x: Data, [B, ...].
      bound_nats: Lower bound of their log-likelihood, float [B].
      mode: Their reconstruction, float [B, ...], or None if the decoder has no mode.
    """
    if self._psnr_db is not None:
      self._psnr_db.update_state(x, mode)
    if self._bits_per_dim is not None:
      self._bits_per_dim.update_state(-bound_nats / num_values(x) / np.log(2))

  def decode_latents(self, z, condition=None, noise=None, temperature=1.0) -> tf.Tensor:
    """Decodes latents.

    Args:
      z: Latents, float [B, ...].
      condition: A dict of the tensors named in the decoder's `conditions`, or None.
      noise: Gumbel noise to draw a sample with, see the decoder's `noise_shape`; None for the decoder's mode.
      temperature: Temperature of the sample, as for `tfvq.models.sample`.

    Returns:
      The mode, float [B, ...], mostly in 0..255 and not rounded; or the sample, int32 [B, ...].

    Raises:
      ValueError: There is noise but the decoder cannot sample, or there is none but the decoder has no mode.
    """
    if noise is None:
      return self.decoder.mode(z, condition)
    return self.decoder.sample(z, noise, condition, temperature)

  def is_flagged(self, x):
    return self.decoder.is_flagged(*split_condition(x))

  def check_flagged(self, share):
    self.decoder.check_flagged(share)

  def input_signature(self):
    x = keras.InputSpec(shape=self.encoder.input_shape, dtype=self.encoder.inputs[0].dtype)
    condition = {name: wanted.spec for name, wanted in self.decoder.conditions.items()}
    return [(x, condition)] if condition else [x]

  def get_config(self):
    return {**super().get_config(), **serialized_parts(self, ("encoder", "decoder"))}

  @classmethod
  def from_config(cls, config):
    return cls(**deserialized_parts(config, ("encoder", "quantizer", "decoder")))


@keras.saving.register_keras_serializable("tfvq")
class PeakSignalToNoiseRatio(keras.metrics.Mean):
  """10 log10(255^2 / mean squared error) in dB, over all values since the last reset."""

  def __init__(self, name: str = "psnr_db", **kwargs):
    super().__init__(name=name, **kwargs)

  def update_state(self, x, reconstruction, sample_weight=None):
    """Adds a batch of data and its reconstruction, both [B, ...] in 0..255."""
    error = tf.math.squared_difference(tf.cast(x, tf.float32), tf.cast(reconstruction, tf.float32))
    super().update_state(tf.reduce_mean(error, axis=list(range(1, error.shape.rank))), sample_weight)

  def result(self):
    return 10 * (np.log10(255**2) - tf.math.log(super().result()) / np.log(10))


def num_values(x: tf.Tensor) -> int:
  """Number of values of each example in data [B, ...]."""
  return int(np.prod(x.shape[1:]))
