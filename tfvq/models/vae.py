"""The variational autoencoder with Gaussian latents: the continuous baseline of the paper's likelihood table."""

import keras
import tensorflow as tf

from tfvq.models.autoencoder import Autoencoder, Reconstruction, num_values
from tfvq.ops.distributed import replica_seed
from tfvq.ops.empty_batch import for_any_batch
from tfvq.ops.precision import to_full_precision


@keras.saving.register_keras_serializable("tfvq")
class VAE(Autoencoder):
  """An autoencoder with independent Gaussian latents and a standard normal prior.

  Reference: arXiv 1711.00937, section 4.1 (the baseline of 4.51 bits/dim); arXiv 1312.6114.

  Args:
    encoder: Keras model, data [B, ...] -> mean and log standard deviation, float [B, ..., 2D].
    decoder: Keras model, latents [B, ..., D] -> parameters of the output distribution.
    distribution: Output distribution, see `tfvq.models.output_distributions`.
    seed: Seed of the latents drawn in training and evaluation.
    **kwargs: As for `keras.Model`.

  Training behaviour:
    `compile(optimizer)` and `fit(x)` minimise the negative evidence lower bound in nats per data value; the metric
    `bits_per_dim` is the same in bits.

  Example:
    >>> model = VAE(image_encoder((8, 8, 3), embedding_dim=8, hidden_units=8),
    ...             image_decoder((8, 8, 3), embedding_dim=4, hidden_units=8), FixedVarianceGaussian())
    >>> model.reconstruct(np.zeros([2, 8, 8, 3], np.uint8)).shape
    TensorShape([2, 8, 8, 3])
  """

  def __init__(self, encoder, decoder, distribution, seed: int = 0, **kwargs):
    super().__init__(encoder, decoder, distribution, **kwargs)
    self.seed = seed
    self.seed_generator = keras.random.SeedGenerator(seed)
    self.built = True

  def call(self, x, training=False):
    import tensorflow_probability as tfp  # takes seconds to import: only where it is used

    moments = to_full_precision(for_any_batch(lambda x: self.encoder(x, training=training), x))
    mean, log_stddev = tf.split(moments, 2, axis=-1)
    posterior = tfp.distributions.Normal(mean, tf.exp(log_stddev))
    prior = tfp.distributions.Normal(tf.zeros_like(mean), 1.0)
    latent_nats = posterior.kl_divergence(prior)
    latent_nats = tf.reduce_sum(latent_nats, axis=list(range(1, latent_nats.shape.rank)))
    noise = tf.random.stateless_normal(tf.shape(mean), replica_seed(self.seed_generator), dtype=mean.dtype)
    latents = mean + tf.exp(log_stddev) * noise
    parameters = for_any_batch(lambda latents: self.decoder(latents, training=training), latents)
    return Reconstruction(to_full_precision(parameters), latent_nats)

  def example_losses(self, x, y_pred, training):
    losses = super().example_losses(x, y_pred, training)
    return losses + tf.cast(y_pred.latent_nats, losses.dtype) / num_values(x)

  def reconstruct(self, x) -> tf.Tensor:
    """Data from the mean of their latents, float, mostly in 0..255, not rounded."""
    mean, _ = tf.split(self.encoder(x), 2, axis=-1)
    return self.distribution.mode(self.decoder(mean))

  def get_config(self):
    return {**super().get_config(), "seed": self.seed}
