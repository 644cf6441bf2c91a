"""The lookup-free quantiser."""

import keras
import numpy as np
import tensorflow as tf

from tfvq.layers.scalar_quantizer import ScalarQuantizer
from tfvq.ops.distributed import num_replicas, sum_over_replicas
from tfvq.ops.quantize import count_per_replica, masked_mean

_GROUP_BITS = 8


@keras.saving.register_keras_serializable("tfvq")
class LookupFreeQuantizer(ScalarQuantizer):
  """Replaces each channel by its sign: a code is a binary number, and there is no codebook to learn or to search.

  Reference: arXiv 2310.05737.
  Deviation: the entropy of the mean soft code is the sum of the entropies of groups of 8 bits, which is an upper bound.

  Args:
    num_bits: Bits of a code, 1 to 24; K = 2^num_bits.
    embedding_dim: D, size of a vector; None means `num_bits`. If they differ, learned linear maps project from D to
      `num_bits` dimensions and back.
    commitment_cost: Weight of the commitment loss, >= 0.
    entropy_weight: Weight of the entropy penalty, >= 0. The penalty is the mean entropy of the soft codes minus
      `diversity` times the entropy of the mean soft code, in nats.
    diversity: See `entropy_weight`, >= 0.
    temperature: Temperature of the soft codes, > 0: a vector's soft code gives each code a probability proportional to
      exp(-squared distance / temperature).
    seed: Seed of the initial linear maps.
    usage_window: Perplexity and codebook usage cover at least this many of the most recent vectors, >= 1.
    **kwargs: As for `Quantizer`.

  Input shape:
    z_e: Float [..., D]. `mask`: as for `Quantizer`.

  Output shape:
    z_q: Shape and dtype of z_e; -1 or 1 if there are no linear maps, where a channel of 0 becomes -1.

  Training behaviour:
    Adds the commitment loss and the entropy penalty, which makes each vector's code certain and all codes equally
    frequent. The gradient passes straight through the sign. `adapt` initialises the linear maps from the principal
    components of data.

  Raises:
    ValueError: An argument is out of its range.

  Example:
    >>> quantizer = LookupFreeQuantizer(num_bits=10)
    >>> quantizer.encode(tf.random.normal([2, 50, 10])).shape
    TensorShape([2, 50])
    >>> quantizer.num_values
    1024
  """

  def __init__(
    self,
    num_bits: int,
    embedding_dim: int | None = None,
    commitment_cost: float = 0.25,
    entropy_weight: float = 0.1,
    diversity: float = 1.0,
    temperature: float = 1.0,
    seed: int = 0,
    usage_window: int = 2**17,
    **kwargs,
  ):
    if not 1 <= num_bits <= 24:
      raise ValueError(f"num_bits must lie in 1..24, but is {num_bits}.")
    if min(commitment_cost, entropy_weight, diversity) < 0:
      raise ValueError(
        "commitment_cost, entropy_weight and diversity must not be negative, but are "
        f"{commitment_cost}, {entropy_weight} and {diversity}."
      )
    if temperature <= 0:
      raise ValueError(f"temperature must be positive, but is {temperature}.")
    super().__init__((2,) * num_bits, embedding_dim, seed, usage_window=usage_window, **kwargs)
    self.num_bits = num_bits
    self.commitment_cost = commitment_cost
    self.entropy_weight = entropy_weight
    self.diversity = diversity
    self.temperature = temperature

  def _bounded(self, channels):
    return channels

  def _digits(self, channels):
    return tf.cast(channels > 0, tf.int32)

  def _channel_margins(self, channels):
    return np.abs(channels)

  def _channel_losses(self, channels, values, counted):
    count = count_per_replica(counted, channels.dtype)
    commitment = masked_mean(tf.math.squared_difference(channels, values), counted, count)
    # Log-odds of the bits: the squared distances of a channel to 1 and -1 differ by 4 times the channel.
    logits = 4 * channels / self.temperature
    # The bits of a soft code are independent, so that their entropies add up.
    entropies = tf.reduce_sum(_binary_entropy(logits), axis=-1, keepdims=True)
    penalty = masked_mean(entropies, counted, count) - self.diversity * self._entropy_of_mean(logits, counted, count)
    return {"commitment": self.commitment_cost * commitment, "entropy": self.entropy_weight * penalty}

  def _entropy_of_mean(self, logits, counted, count):
    """Entropy of the mean soft code of the global batch, a scalar in nats.

    The gradient flows to the vectors of this replica alone.
    """
    logits = tf.reshape(logits, [-1, self.num_bits])
    counted = tf.reshape(tf.cast(counted, logits.dtype), [-1, 1])
    sums = []
    for begin in range(0, self.num_bits, _GROUP_BITS):
      probabilities = counted
      for logit in tf.unstack(logits[:, begin : begin + _GROUP_BITS, tf.newaxis], axis=1):
        probabilities = tf.concat([probabilities * tf.sigmoid(-logit), probabilities * tf.sigmoid(logit)], axis=-1)
      sums.append(tf.reduce_sum(probabilities, axis=0))
    means = tf.math.divide_no_nan(tf.concat(sums, axis=0), count)
    own_means = tf.stop_gradient(means)
    (global_sums,) = sum_over_replicas(own_means)
    means = global_sums / num_replicas() + (means - own_means)
    return -tf.reduce_sum(tf.math.xlogy(means, means))

  def get_config(self):
    return {
      **super().get_config(),
      "num_bits": self.num_bits,
      "commitment_cost": self.commitment_cost,
      "entropy_weight": self.entropy_weight,
      "diversity": self.diversity,
      "temperature": self.temperature,
    }


def _binary_entropy(logits):
  """Entropy in nats of bits with these log-odds."""
  return tf.math.softplus(logits) - logits * tf.sigmoid(logits)
