"""The VQ-VAE: an autoencoder with discrete latents."""

import math

import keras
import tensorflow as tf

from tfvq.models.autoencoder import Autoencoder, Reconstruction
from tfvq.ops.empty_batch import for_any_batch
from tfvq.ops.precision import to_full_precision


@keras.saving.register_keras_serializable("tfvq")
class VQVAE(Autoencoder):
  """Encoder, quantiser and decoder, trained together.

  Reference: arXiv 1711.00937, section 3 and eq. 3.

  Args:
    encoder: Keras model, data [B, ...] -> z_e, float [B, ..., D].
    quantizer: `tfvq.layers.Quantizer` of dimension D.
    decoder: Keras model, z_q -> parameters of the output distribution.
    distribution: Output distribution, see `tfvq.models.output_distributions`.
    **kwargs: As for `keras.Model`.

  Input shape:
    x: images, uint8 or float [B, H, W, channels] in 0..255.

  Output shape:
    A `Reconstruction`.

  Training behaviour:
    `compile(optimizer)` and `fit(x)` minimise eq. 3, with log p(x | z_q) averaged over the values of x. Metrics:
    `psnr_db`, `perplexity`, `codebook_usage`, and `bits_per_dim` (the bound with a uniform prior over the codes) where
    the output distribution is discrete.

  Example:
    >>> model = VQVAE(image_encoder((8, 8, 3), embedding_dim=4, hidden_units=8), VectorQuantizer(16, 4),
    ...               image_decoder((8, 8, 3), embedding_dim=4, hidden_units=8), FixedVarianceGaussian())
    >>> images = np.zeros([2, 8, 8, 3], np.uint8)
    >>> model.encode(images).shape
    TensorShape([2, 2, 2])
    >>> model.decode(model.encode(images)).shape
    TensorShape([2, 8, 8, 3])
  """

  def __init__(self, encoder, quantizer, decoder, distribution, **kwargs):
    super().__init__(encoder, decoder, distribution, **kwargs)
    self.quantizer = quantizer
    self.built = True

  def call(self, x, training=False):
    z_e = for_any_batch(lambda x: self.encoder(x, training=training), x)
    z_q = self.quantizer(z_e, training=training)
    parameters = for_any_batch(lambda z_q: self.decoder(z_q, training=training), z_q)
    parameters = to_full_precision(parameters)
    # The prior is uniform while the autoencoder trains: log K for each of a datum's codes.
    latent_nats = math.prod(self.encoder.output_shape[1:-1]) * self.quantizer.bits * math.log(2)
    return Reconstruction(parameters, tf.fill([tf.shape(x)[0]], tf.constant(latent_nats, parameters.dtype)))

  def encode(self, x) -> tf.Tensor:
    """Codes of data, int32 [B, ..., *quantizer.code_shape]."""
    return self.quantizer.encode(self.encoder(x))

  def decode(self, codes) -> tf.Tensor:
    """Data from codes, int32 [B, ..., *quantizer.code_shape] -> float, mostly in 0..255, not rounded."""
    return self.distribution.mode(self.decoder(self.quantizer.decode(codes)))

  def reconstruct(self, x) -> tf.Tensor:
    """Data from their own codes, float, mostly in 0..255, not rounded."""
    return self.decode(self.encode(x))

  def adapt(self, x) -> None:
    """Fits the quantiser to the encoder's output for `x`, by k-means if it has a codebook; call it before training."""
    self.quantizer.adapt(self.encoder(x))

  def get_config(self):
    return {**super().get_config(), "quantizer": keras.saving.serialize_keras_object(self.quantizer)}
