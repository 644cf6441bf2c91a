"""The base of all autoencoders: an encoder, a decoder, training and metrics."""

import abc

import keras
import numpy as np
import tensorflow as tf

from tfvq.models.likelihood_model import LikelihoodModel, split_condition


class Autoencoder(LikelihoodModel):
  """An encoder and a decoder with a bottleneck between them, trained on a bound of the data's likelihood.

  Subclasses define `bottleneck`, and `reconstruct` from what it does best.

  Args:
    encoder: Keras model, data [B, ...] -> z_e.
    decoder: `tfvq.models.Decoder`, the distribution of data given latents.
    **kwargs: As for `keras.Model`.

  Input shape:
    x: data [B, ...]; or a pair (x, condition) where the decoder has `conditions`, the condition a dict of tensors.

  Output shape:
    A dict: "log_prob", log p(x | z) in nats, float [B]; "latent_nats", what the latents cost in the bound of log p(x),
    float [B]; and "mode", float like x, where the decoder has a mode.
  """

  def __init__(self, encoder, decoder, **kwargs):
    super().__init__(**{**kwargs, "autocast": False})  # the data stay as they are
    self.encoder = encoder
    self.decoder = decoder
    self._psnr_db = PeakSignalToNoiseRatio() if decoder.has_mode else None
    self._bits_per_dim = keras.metrics.Mean(name="bits_per_dim") if decoder.discrete else None

  @abc.abstractmethod
  def bottleneck(self, x, training=False) -> tuple[tf.Tensor, tf.Tensor]:
    """Latents of data and what they cost, [B, ...] -> (z float [B, ...], nats float [B])."""

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
    """Counts a batch: data, the bound of their log-likelihood, float [B], and their reconstruction or None."""
    if self._psnr_db is not None:
      self._psnr_db.update_state(x, mode)
    if self._bits_per_dim is not None:
      self._bits_per_dim.update_state(-bound_nats / num_values(x) / np.log(2))

  def decode_latents(self, z, condition=None, noise=None, temperature=1.0) -> tf.Tensor:
    """Data from latents.

    Args:
      z: Latents, float [B, ...].
      condition: A dict of the tensors named in the decoder's `conditions`, or None.
      noise: Gumbel noise for a sample, see the decoder's `noise_shape`; None for the decoder's mode.
      temperature: Of the sample, as for `tfvq.models.sample`.

    Returns:
      The mode, float [B, ...], mostly in 0..255, not rounded; or the sample.

    Raises:
      ValueError: There is noise where the decoder draws no samples, or none where it has no mode.
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
    serialize = keras.saving.serialize_keras_object
    return {**super().get_config(), "encoder": serialize(self.encoder), "decoder": serialize(self.decoder)}

  @classmethod
  def from_config(cls, config):
    parts, deserialize = ("encoder", "quantizer", "decoder"), keras.saving.deserialize_keras_object
    return cls(**{key: deserialize(value) if key in parts else value for key, value in config.items()})


@keras.saving.register_keras_serializable("tfvq")
class PeakSignalToNoiseRatio(keras.metrics.Mean):
  """10 log10(255^2 / mean squared error) in dB over all values since the last reset."""

  def __init__(self, name: str = "psnr_db", **kwargs):
    super().__init__(name=name, **kwargs)

  def update_state(self, x, reconstruction, sample_weight=None):
    """Adds a batch: data and its reconstruction, same shape, in 0..255."""
    error = tf.math.squared_difference(tf.cast(x, tf.float32), tf.cast(reconstruction, tf.float32))
    super().update_state(tf.reduce_mean(error, axis=list(range(1, error.shape.rank))), sample_weight)

  def result(self):
    return 10 * (np.log10(255**2) - tf.math.log(super().result()) / np.log(10))


def num_values(x: tf.Tensor) -> int:
  """Number of values per example of data [B, ...]."""
  return int(np.prod(x.shape[1:]))
