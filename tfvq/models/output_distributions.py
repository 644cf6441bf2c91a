"""Output distributions of decoders, p(x | z), for 8-bit data."""

import keras
import numpy as np
import tensorflow as tf

_MIN_LOG_SCALE = -7.0


@keras.saving.register_keras_serializable("tfvq")
class FixedVarianceGaussian:
  """A Gaussian with a fixed variance; its negative log-likelihood is a scaled squared error plus a constant.

  Args:
    variance: Variance in units in which the values 0..255 are -1..1, > 0. With the variance of the data, the loss of a
      decoder that always predicts the mean is 1/2 per value, for any data.

  Raises:
    ValueError: The variance is not positive.

  Example:
    >>> FixedVarianceGaussian().mode(tf.constant([-1.0, 0.0, 1.0])).numpy().tolist()
    [0.0, 127.5, 255.0]
  """

  num_parameters = 1
  discrete = False  # a density, from which bits per dimension cannot be computed

  def __init__(self, variance: float = 1.0):
    if variance <= 0:
      raise ValueError(f"variance must be positive, but is {variance}.")
    self.variance = variance

  def log_prob(self, parameters, x):
    """Log-density per value in nats up to a constant, parameters [..., C], x float [..., C] in 0..255 -> [..., C]."""
    return -0.5 * tf.math.squared_difference(parameters, _to_unit_range(x)) / self.variance

  def mode(self, parameters):
    """The most probable values, float [..., C], mostly in 0..255 and not rounded."""
    return _from_unit_range(parameters)

  def get_config(self):
    return {"variance": self.variance}

  @classmethod
  def from_config(cls, config):
    return cls(**config)


@keras.saving.register_keras_serializable("tfvq")
class DiscretizedLogistic:
  """A logistic distribution over 256 values; the tails belong to 0 and 255.

  Reference: arXiv 1606.04934.
  Deviation: arXiv 1711.00937 does not say which distribution its bits per dimension are computed with.

  Example:
    >>> parameters = tf.zeros([256, 2])  # mean and log-scale of one pixel, the same for each of its values
    >>> log_prob = DiscretizedLogistic().log_prob(parameters, tf.range(256.0)[:, tf.newaxis])
    >>> round(float(tf.reduce_sum(tf.exp(log_prob))), 4)
    1.0
  """

  num_parameters = 2
  discrete = True

  def log_prob(self, parameters, x):
    """Log-probability per value in nats, parameters [..., 2C], x float [..., C] in 0..255 -> [..., C]."""
    import tensorflow_probability as tfp  # takes seconds to import: only where it is used

    mean, log_scale = tf.split(parameters, 2, axis=-1)
    log_scale = tf.maximum(log_scale, _MIN_LOG_SCALE) + np.log(127.5)
    # QuantizedDistribution rounds up: the bin of value v is (v - 1, v]. The shift by half a value centres it on v.
    logistic = tfp.distributions.Logistic(_from_unit_range(mean) - 0.5, tf.exp(log_scale))
    return tfp.distributions.QuantizedDistribution(logistic, low=0.0, high=255.0).log_prob(x)

  def mode(self, parameters):
    """The most probable values, float [..., C], mostly in 0..255 and not rounded."""
    return _from_unit_range(tf.split(parameters, 2, axis=-1)[0])

  def get_config(self):
    return {}

  @classmethod
  def from_config(cls, config):
    return cls(**config)


def _to_unit_range(x):
  return x / 127.5 - 1


def _from_unit_range(x):
  return x * 127.5 + 127.5
