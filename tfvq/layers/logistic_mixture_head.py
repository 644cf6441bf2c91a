"""The output distribution of an autoregressive model over many ordered values, such as 16-bit audio."""

import keras
import numpy as np
import tensorflow as tf

from tfvq.layers.dense import Dense
from tfvq.ops.precision import to_full_precision
from tfvq.ops.values import check_values


@keras.saving.register_keras_serializable("tfvq")
class LogisticMixtureHead(keras.layers.Layer):
  """A mixture of logistic distributions over K ordered values; the tails belong to the values 0 and K - 1.

  Reference: arXiv 1701.05517, section 2.1; for audio: arXiv 1711.10433.
  Deviation: the values of a step are independent of each other given the features.

  Args:
    num_values: K, number of values, >= 2; 65,536 for 16-bit audio.
    num_variables: G, number of values per step, >= 1.
    num_mixtures: M, number of components of the mixture, >= 1.
    hidden_units: Units of the hidden layer, >= 1.
    **kwargs: As for `keras.layers.Layer`. The parameters are float32 even if `dtype` has 16 bits.

  Raises:
    ValueError: A size is out of its range.

  Input shape:
    `features`: float [..., C]. `x`: integers [..., G] in 0..K-1; ignored.

  Output shape:
    Parameters, float [..., G, 3M]: logits of the components, means, and log-scales. Means and scales are in units in
    which the values 0..K-1 are -1..1.

  Example:
    >>> head = LogisticMixtureHead(num_values=65_536, num_mixtures=10, hidden_units=32)
    >>> head(tf.zeros([2, 100, 16])).shape
    TensorShape([2, 100, 1, 30])
  """

  def __init__(
    self, num_values: int, num_variables: int = 1, num_mixtures: int = 10, hidden_units: int = 256, **kwargs
  ):
    super().__init__(**kwargs)
    if min(num_values - 1, num_variables, num_mixtures) < 1:
      raise ValueError(
        "num_values must be 2 or more, num_variables and num_mixtures positive, not "
        f"{num_values}, {num_variables}, {num_mixtures}."
      )
    self.num_values = num_values
    self.num_variables = num_variables
    self.num_mixtures = num_mixtures
    self.hidden_units = hidden_units
    self.hidden = Dense(hidden_units, activation="relu", dtype=self.dtype_policy, name="hidden")
    self.output_projection = Dense(3 * num_variables * num_mixtures, dtype=self.dtype_policy, name="output")

  @property
  def noise_shape(self) -> tuple[int, ...]:
    """Shape of the Gumbel noise for a sample of one step: (G, M + 2)."""
    return self.num_variables, self.num_mixtures + 2

  @property
  def outputs(self) -> list[Dense]:
    """The layers that compute the parameters."""
    return [self.output_projection]

  def build(self, features_shape):
    self.hidden.build(features_shape)
    self.output_projection.build((*features_shape[:-1], self.hidden_units))
    self.built = True

  def call(self, features, x=None):
    del x
    parameters = self.output_projection(self.hidden(features))
    parameters = to_full_precision(parameters)
    shape = tf.concat([tf.shape(parameters)[:-1], [self.num_variables, 3 * self.num_mixtures]], axis=0)
    parameters = tf.reshape(parameters, shape)
    return tf.ensure_shape(parameters, [*features.shape[:-1], self.num_variables, 3 * self.num_mixtures])

  def sample(self, features, noise, temperature=1.0) -> tf.Tensor:
    """Samples the values of a step.

    Args:
      features: Float [..., C].
      noise: Gumbel noise, float [..., G, M + 2].
      temperature: Multiplies the noise, >= 0; 0 gives the mean of the most probable component. A scalar, or one for
        each value, [G].

    Returns:
      Values, int32 [..., G].
    """
    logits, means, log_scales = self._parts(self(features))
    noise = tf.cast(noise, logits.dtype)
    noise *= tf.broadcast_to(tf.cast(temperature, noise.dtype), [self.num_variables])[:, tf.newaxis]
    component = tf.argmax(logits + noise[..., : self.num_mixtures], axis=-1, output_type=tf.int32)
    pick = lambda values: tf.gather(values, component, batch_dims=component.shape.rank)
    # The difference of two standard Gumbel variables has a standard logistic distribution.
    number = pick(means) + tf.exp(pick(log_scales)) * (noise[..., -2] - noise[..., -1])
    values = tf.round((number + 1) * (self.num_values - 1) / 2)
    return tf.cast(tf.clip_by_value(values, 0, self.num_values - 1), tf.int32)

  def log_prob(self, parameters, x) -> tf.Tensor:
    """Log-probability of each step in nats, parameters [..., G, 3M] and integers [..., G] -> float [...]."""
    import tensorflow_probability as tfp  # takes seconds to import: only where it is used

    check_values(tf.convert_to_tensor(x), self.num_values, f"Values of {self.name}")
    logits, means, log_scales = self._parts(parameters)
    half = (self.num_values - 1) / 2
    # QuantizedDistribution rounds up: the bin of value v is (v - 1, v]. The shift by half a value centres it on v.
    logistic = tfp.distributions.Logistic((means + 1) * half - 0.5, tf.exp(log_scales) * half)
    quantized = tfp.distributions.QuantizedDistribution(logistic, low=0.0, high=float(self.num_values - 1))
    log_prob = quantized.log_prob(tf.cast(x, parameters.dtype)[..., tf.newaxis])
    return tf.reduce_sum(tf.reduce_logsumexp(tf.nn.log_softmax(logits) + log_prob, axis=-1), axis=-1)

  def _parts(self, parameters):
    logits, means, log_scales = tf.split(parameters, 3, axis=-1)
    # A scale below half the width of a value would change the probabilities little.
    return logits, means, tf.maximum(log_scales - 3, np.log(0.5 / self.num_values))

  def get_config(self):
    return {
      **super().get_config(),
      "num_values": self.num_values,
      "num_variables": self.num_variables,
      "num_mixtures": self.num_mixtures,
      "hidden_units": self.hidden_units,
    }
