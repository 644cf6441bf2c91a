"""VIMCO: an autoencoder with discrete latents trained by a multi-sample bound, the paper's discrete baseline."""

import keras
import numpy as np
import tensorflow as tf

from tfvq.models.autoencoder import Autoencoder, num_values
from tfvq.models.likelihood_model import split_condition
from tfvq.ops.distributed import replica_seed
from tfvq.ops.empty_batch import for_any_batch
from tfvq.ops.precision import to_full_precision
from tfvq.ops.values import check_values


@keras.saving.register_keras_serializable("tfvq")
class VIMCO(Autoencoder):
  """An autoencoder with independent K-way latents, trained without a straight-through gradient.

  Reference: arXiv 1711.00937, section 4.1 (the baseline of 5.14 bits/dim, 50 samples); arXiv 1602.06725, eq. 9-11.

  Args:
    encoder: Keras model, data [B, ...] -> logits of the latents, float [B, ..., K].
    decoder: `tfvq.models.Decoder`, the distribution of data given embedded latents [B, ..., D].
    num_embeddings: K, number of values of a latent.
    embedding_dim: D, size of the vector that embeds a latent for the decoder.
    num_samples: S, samples of the latents per example, >= 2.
    seed: Seed of the samples.
    **kwargs: As for `keras.Model`.

  Raises:
    ValueError: `num_samples` is less than 2.

  Output shape:
    A dict, see `Autoencoder`, for the most probable latents of each example and their cost under a uniform prior.

  Training behaviour:
    `compile(optimizer)` and `fit` maximise the multi-sample bound
    log 1/S sum_s p(x | z_s) p(z_s) / q(z_s | x), z_s ~ q, with a uniform prior; the metric `bits_per_dim` is the
    negative bound in bits.

  Example:
    >>> network = image_decoder((8, 8, 3), embedding_dim=4, hidden_units=8)
    >>> model = VIMCO(image_encoder((8, 8, 3), embedding_dim=16, hidden_units=8),
    ...               ConvolutionalDecoder(network, FixedVarianceGaussian()), num_embeddings=16, embedding_dim=4)
    >>> model.encode(np.zeros([2, 8, 8, 3], np.uint8)).shape
    TensorShape([2, 2, 2])
  """

  def __init__(self, encoder, decoder, num_embeddings, embedding_dim, num_samples: int = 50, seed: int = 0, **kwargs):
    if num_samples < 2:
      raise ValueError(f"num_samples must be at least 2, but is {num_samples}.")
    super().__init__(encoder, decoder, **kwargs)
    self.num_embeddings = num_embeddings
    self.embedding_dim = embedding_dim
    self.num_samples = num_samples
    self.seed = seed
    self.seed_generator = keras.random.SeedGenerator(seed)
    self.embedding = keras.layers.Embedding(num_embeddings, embedding_dim, dtype=self.dtype_policy, name="embedding")
    self.embedding.build()
    self.built = True

  def bottleneck(self, x, training=False):
    logits = self._logits(x, training)
    codes = tf.argmax(logits, axis=-1, output_type=tf.int32)
    return self.embedding(codes), tf.fill([tf.shape(x)[0]], -self._log_prior(logits.dtype))

  def _logits(self, x, training):
    """Logits of the latents, float [B, ..., K]."""
    return to_full_precision(for_any_batch(lambda x: self.encoder(x, training=training), x))

  def _log_prior(self, dtype):
    """Log-probability of an example's latents under the uniform prior in nats, float scalar."""
    return tf.constant(-np.prod(self.encoder.output_shape[1:-1]) * np.log(self.num_embeddings), dtype)

  def _samples(self, x, training):
    """Samples the latents of each example S times.

    Returns:
      `(embedded latents [S B, ..., D], latent_nats [S, B])`, where latent_nats is log q(z | x) - log p(z).
    """
    logits = self._logits(x, training)
    repeated = tf.repeat(logits[tf.newaxis], self.num_samples, axis=0)
    flat = tf.reshape(repeated, [-1, self.num_embeddings])
    codes = tf.random.stateless_categorical(flat, 1, replica_seed(self.seed_generator), dtype=tf.int32)
    codes = tf.reshape(codes, tf.shape(repeated)[:-1])  # [S, B, ...]
    log_q = -tf.nn.sparse_softmax_cross_entropy_with_logits(labels=codes, logits=repeated)
    log_q = tf.reduce_sum(log_q, axis=list(range(2, log_q.shape.rank)))
    codes = tf.reshape(codes, tf.concat([[-1], tf.shape(codes)[2:]], axis=0))
    return self.embedding(codes), log_q - self._log_prior(log_q.dtype)

  def example_losses(self, x, y_pred, training):
    """The negative surrogate of each example's bound, in nats per data value, float [B]."""
    # The bound needs samples, but `call` uses the most probable latents. A graph drops the computations of `call`.
    del y_pred
    x, condition = split_condition(x)
    z, latent_nats = self._samples(x, training)
    repeat = lambda value: tf.tile(value, [self.num_samples, *[1] * (value.shape.rank - 1)])
    repeated, condition = tf.nest.map_structure(repeat, (x, condition or {}))
    log_prob, mode = self.decoder.log_prob_and_mode(repeated, z, condition, training)
    latent_nats = tf.cast(latent_nats, log_prob.dtype)
    log_weights = tf.reshape(log_prob, tf.shape(latent_nats)) - latent_nats
    bound, surrogate = vimco_objective(log_weights, latent_nats)
    # The PSNR is computed for the first sample of each example.
    self.update_metrics(x, bound, None if mode is None else mode[: tf.shape(x)[0]])
    return -surrogate / num_values(x)

  def encode(self, x) -> tf.Tensor:
    """Most probable codes of data, [B, ...] -> int32 [B, ...]."""
    return tf.argmax(self.encoder(x), axis=-1, output_type=tf.int32)

  def decode(self, codes, condition=None, noise=None, temperature=1.0) -> tf.Tensor:
    """Decodes codes, int32 [B, ...]; other arguments and result as for `decode_latents`."""
    check_values(tf.convert_to_tensor(codes), self.num_embeddings, f"Codes of {self.name}")
    return self.decode_latents(self.embedding(codes), condition, noise, temperature)

  def reconstruct(self, x, condition=None, noise=None, temperature=1.0) -> tf.Tensor:
    """Decodes the most probable codes of data; other arguments and result as for `decode_latents`."""
    return self.decode(self.encode(x), condition, noise, temperature)

  def get_config(self):
    return {
      **super().get_config(),
      "num_embeddings": self.num_embeddings,
      "embedding_dim": self.embedding_dim,
      "num_samples": self.num_samples,
      "seed": self.seed,
    }


def vimco_objective(log_weights: tf.Tensor, log_q: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """The multi-sample bound, and a surrogate objective that has the VIMCO gradient.

  Reference: arXiv 1602.06725, eq. 9-11.

  Args:
    log_weights: log p(x, z_s) / q(z_s | x), float [S, B], S >= 2.
    log_q: log q(z_s | x) up to a constant, float [S, B].

  Returns:
    `(bound, surrogate)`, float [B] each, in nats; the gradient of the surrogate estimates that of the expected bound.
  """
  num_samples = tf.cast(tf.shape(log_weights)[0], log_weights.dtype)
  log_num = tf.math.log(num_samples)
  bound = tf.reduce_logsumexp(log_weights, axis=0) - log_num
  # For each sample, the bound with that sample's weight replaced by the geometric mean of the others'.
  geometric_mean = (tf.reduce_sum(log_weights, axis=0) - log_weights) / (num_samples - 1)
  diagonal = tf.eye(tf.shape(log_weights)[0], dtype=log_weights.dtype)[:, :, tf.newaxis]
  replaced = log_weights[tf.newaxis] * (1 - diagonal) + geometric_mean[tf.newaxis] * diagonal
  baseline = tf.reduce_logsumexp(replaced, axis=1) - log_num
  learning_signal = tf.stop_gradient(bound - baseline)
  return bound, bound + tf.reduce_sum(learning_signal * log_q, axis=0)
