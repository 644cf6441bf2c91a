"""The VQ-VAE: an autoencoder with discrete latents."""

import math

import keras
import tensorflow as tf

from tfvq.models.autoencoder import Autoencoder
from tfvq.ops.empty_batch import for_any_batch


@keras.saving.register_keras_serializable("tfvq")
class VQVAE(Autoencoder):
  """An autoencoder with a quantiser between encoder and decoder, trained together.

  Reference: arXiv 1711.00937, section 3 and eq. 3.

  Args:
    encoder: Keras model, data [B, ...] -> z_e, float [B, ..., D].
    quantizer: `tfvq.layers.Quantizer` of dimension D.
    decoder: `tfvq.models.Decoder`, the distribution of data given z_q.
    **kwargs: As for `keras.Model`.

  Input shape:
    x: data that both encoder and decoder take, such as images, uint8 or float [B, H, W, channels] in 0..255, or the
    codes of another model, integers; or a pair (x, condition), see `Autoencoder`.

  Output shape:
    A dict, see `Autoencoder`.

  Training behaviour:
    `compile(optimizer)` and `fit` on `x` or `((x, condition),)` minimise eq. 3, with log p(x | z_q) averaged over the
    values of x. Metrics: `perplexity`, `codebook_usage`; `psnr_db` if the decoder has a mode; `bits_per_dim` (the bound
    with a uniform prior over the codes) if the decoder's distribution is discrete.

  Example:
    >>> network = image_decoder((8, 8, 3), embedding_dim=4, hidden_units=8)
    >>> model = VQVAE(image_encoder((8, 8, 3), embedding_dim=4, hidden_units=8), VectorQuantizer(16, 4),
    ...               ConvolutionalDecoder(network, FixedVarianceGaussian()))
    >>> images = np.zeros([2, 8, 8, 3], np.uint8)
    >>> model.encode(images).shape
    TensorShape([2, 2, 2])
    >>> model.decode(model.encode(images)).shape
    TensorShape([2, 8, 8, 3])
  """

  def __init__(self, encoder, quantizer, decoder, **kwargs):
    super().__init__(encoder, decoder, **kwargs)
    self.quantizer = quantizer
    self.built = True

  def bottleneck(self, x, training=False):
    z_e = for_any_batch(lambda x: self.encoder(x, training=training), x)
    z_q = self.quantizer(z_e, training=training)
    # The prior is uniform while the autoencoder is trained: each code of an example costs log K nats.
    latent_nats = math.prod(self.encoder.output_shape[1:-1]) * self.quantizer.bits * math.log(2)
    return z_q, tf.fill([tf.shape(x)[0]], latent_nats)

  def encode(self, x) -> tf.Tensor:
    """Encodes data, [B, ...] -> codes, int32 [B, ..., *quantizer.code_shape]."""
    return self.quantizer.encode(self.encoder(x))

  def decode(self, codes, condition=None, noise=None, temperature=1.0) -> tf.Tensor:
    """Decodes codes, int32 [B, ..., *quantizer.code_shape]; other arguments and result as for `decode_latents`."""
    return self.decode_latents(self.quantizer.decode(codes), condition, noise, temperature)

  def reconstruct(self, x, condition=None, noise=None, temperature=1.0) -> tf.Tensor:
    """Encodes and decodes data; other arguments and result as for `decode_latents`."""
    return self.decode(self.encode(x), condition, noise, temperature)

  def adapt(self, x) -> None:
    """Fits the quantiser to the encoder's output for data `x`, [B, ...], before training; see `Quantizer.adapt`."""
    self.quantizer.adapt(self.encoder(x))

  def get_config(self):
    return {**super().get_config(), "quantizer": keras.saving.serialize_keras_object(self.quantizer)}
