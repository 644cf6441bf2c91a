"""The variational autoencoder with Gaussian latents, the paper's continuous baseline."""

import keras
import tensorflow as tf

from tfvq.models.autoencoder import Autoencoder, num_values
from tfvq.models.likelihood_model import split_condition
from tfvq.ops.distributed import replica_seed
from tfvq.ops.empty_batch import for_any_batch
from tfvq.ops.precision import to_full_precision


@keras.saving.register_keras_serializable("tfvq")
class VAE(Autoencoder):
  """An autoencoder with independent Gaussian latents and a standard normal prior.

  Reference: arXiv 1711.00937, section 4.1 (the baseline of 4.51 bits/dim); arXiv 1312.6114.

  Args:
    encoder: Keras model, data [B, ...] -> means and log standard deviations of the latents, float [B, ..., 2D].
    decoder: `tfvq.models.Decoder`, the distribution of data given latents [B, ..., D].
    seed: Seed of the latents that are sampled in training and evaluation.
    **kwargs: As for `keras.Model`.

  Training behaviour:
    `compile(optimizer)` and `fit` minimise the negative evidence lower bound in nats per data value; the metric
    `bits_per_dim` is the same in bits.

  Example:
    >>> network = image_decoder((8, 8, 3), embedding_dim=4, hidden_units=8)
    >>> model = VAE(image_encoder((8, 8, 3), embedding_dim=8, hidden_units=8),
    ...             ConvolutionalDecoder(network, FixedVarianceGaussian()))
    >>> model.reconstruct(np.zeros([2, 8, 8, 3], np.uint8)).shape
    TensorShape([2, 8, 8, 3])
  """

  def __init__(self, encoder, decoder, seed: int = 0, **kwargs):
    super().__init__(encoder, decoder, **kwargs)
    self.seed = seed
    self.seed_generator = keras.random.SeedGenerator(seed)
    self.built = True

  def bottleneck(self, x, training=False):
    import tensorflow_probability as tfp  # takes seconds to import: only where it is used

    moments = to_full_precision(for_any_batch(lambda x: self.encoder(x, training=training), x))
    mean, log_stddev = tf.split(moments, 2, axis=-1)
    posterior = tfp.distributions.Normal(mean, tf.exp(log_stddev))
    prior = tfp.distributions.Normal(tf.zeros_like(mean), 1.0)
    latent_nats = posterior.kl_divergence(prior)
    latent_nats = tf.reduce_sum(latent_nats, axis=list(range(1, latent_nats.shape.rank)))
    noise = tf.random.stateless_normal(tf.shape(mean), replica_seed(self.seed_generator), dtype=mean.dtype)
    return mean + tf.exp(log_stddev) * noise, latent_nats

  def example_losses(self, x, y_pred, training):
    losses = super().example_losses(x, y_pred, training)
    x, _ = split_condition(x)
    return losses + y_pred["latent_nats"] / num_values(x)

  def reconstruct(self, x, condition=None, noise=None, temperature=1.0) -> tf.Tensor:
    """Decodes the mean of the data's latents; other arguments and result as for `decode_latents`."""
    mean, _ = tf.split(self.encoder(x), 2, axis=-1)
    return self.decode_latents(mean, condition, noise, temperature)

  def get_config(self):
    return {**super().get_config(), "seed": self.seed}
