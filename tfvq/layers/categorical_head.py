"""The output distribution of an autoregressive model over K-way values, one or more per position."""

import keras
import tensorflow as tf

from tfvq.layers.dense import Dense
from tfvq.ops.precision import full_precision
from tfvq.ops.values import check_values


@keras.saving.register_keras_serializable("tfvq")
class CategoricalHead(keras.layers.Layer):
  """A K-way softmax for each value of a position, conditioned on the values before it.

  The values of a position are, for example, the red, green and blue of a pixel, or the codes of several latents. Their
  joint probability given the features h is p(x_1|h) p(x_2|h, x_1) ...

  Reference: arXiv 1601.06759, section 2.2.
  Deviation: only this head models the order of the values within a position; the layers before it see whole positions.

  Args:
    num_values: K, number of values that a variable can have, >= 2.
    num_variables: G, number of variables per position, >= 1.
    hidden_units: Units of the hidden layer of each variable, >= 1.
    **kwargs: As for `keras.layers.Layer`. The logits are float32 even if `dtype` has 16 bits.

  Raises:
    ValueError: A size is out of its range.

  Input shape:
    `features`: float [..., C]. `x`: integers [..., G] in 0..K-1.

  Output shape:
    Logits, float [..., G, K].

  Example:
    >>> head = CategoricalHead(num_values=256, num_variables=3, hidden_units=32)
    >>> logits = head(tf.zeros([2, 8, 8, 16]), tf.zeros([2, 8, 8, 3], tf.int32))
    >>> logits.shape
    TensorShape([2, 8, 8, 3, 256])
  """

  def __init__(self, num_values: int, num_variables: int = 1, hidden_units: int = 256, **kwargs):
    super().__init__(**kwargs)
    if num_values < 2 or num_variables < 1:
      raise ValueError(f"num_values must be 2 or more and num_variables positive, not {num_values}, {num_variables}.")
    self.num_values = num_values
    self.num_variables = num_variables
    self.hidden_units = hidden_units
    policy = self.dtype_policy
    self.hidden = Dense(num_variables * hidden_units, dtype=policy, name="hidden")
    # earlier[g](x_g) is the contribution of variable g to the hidden layers of all variables after it.
    self.earlier = [
      keras.layers.Embedding(num_values, (num_variables - 1 - g) * hidden_units, dtype=policy, name=f"embedding_{g}")
      for g in range(num_variables - 1)
    ]
    self.outputs = [Dense(num_values, dtype=policy, name=f"output_{g}") for g in range(num_variables)]

  @property
  def noise_shape(self) -> tuple[int, ...]:
    """Shape of the Gumbel noise for a sample of one position: (G, K)."""
    return self.num_variables, self.num_values

  @property
  def _output_dtype(self):
    return full_precision(self.compute_dtype)

  def build(self, features_shape):
    self.hidden.build(features_shape)
    for embedding in self.earlier:
      embedding.build()
    for output in self.outputs:
      output.build((*features_shape[:-1], self.hidden_units))
    self.built = True

  def call(self, features, x):
    pending = self.hidden(features)
    logits = []
    for g in range(self.num_variables):
      value, pending = self._next_logits(pending, g)
      logits.append(value)
      pending = self._observe(pending, g, x[..., g])
    return tf.stack(logits, axis=-2)

  def sample(self, features, noise, temperature=1.0) -> tf.Tensor:
    """Samples the values of a position one after another.

    Args:
      features: Float [..., C].
      noise: Gumbel noise, float [..., G, K].
      temperature: Divides the logits, >= 0; 0 takes the most probable value. A scalar, or one for each variable, [G].

    Returns:
      Values, int32 [..., G].
    """
    pending = self.hidden(features)
    noise = tf.cast(noise, self._output_dtype)
    temperature = tf.broadcast_to(tf.cast(temperature, noise.dtype), [self.num_variables])
    values = []
    for g, scaled_noise in enumerate(tf.unstack(temperature[:, tf.newaxis] * noise, axis=-2)):
      logits, pending = self._next_logits(pending, g)
      # argmax(logits / T + noise) = argmax(logits + T noise)
      values.append(tf.argmax(logits + scaled_noise, axis=-1, output_type=tf.int32))
      pending = self._observe(pending, g, values[-1])
    return tf.stack(values, axis=-1)

  def log_prob(self, logits, x) -> tf.Tensor:
    """Log-probability of each position in nats, logits [..., G, K] and integers [..., G] -> float [...]."""
    check_values(tf.convert_to_tensor(x), self.num_values, f"Values of {self.name}")
    return -tf.reduce_sum(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=x, logits=logits), axis=-1)

  def _next_logits(self, pending, g):
    """Logits of variable g, and the pre-activations of the variables after it.

    Args:
      pending: Pre-activations of the hidden layers of variables g..G-1, float [..., (G - g) hidden_units].
      g: Index of the variable.

    Returns:
      `(logits [..., K], pre-activations [..., (G - 1 - g) hidden_units])`.
    """
    num_after = self.num_variables - 1 - g
    # Not two slices: strided slices are slow in TFLite.
    hidden, rest = tf.split(pending, [self.hidden_units, num_after * self.hidden_units], axis=-1)
    logits = self.outputs[g](tf.nn.relu(hidden))
    return tf.cast(logits, self._output_dtype), rest

  def _observe(self, pending, g, value):
    """Adds the contribution of variable g to the pre-activations of the variables after it."""
    if g == self.num_variables - 1:
      return pending
    # The layer's `call` would add three operations that look for negative values.
    table = tf.convert_to_tensor(self.earlier[g].embeddings)
    return pending + tf.cast(tf.gather(table, value), pending.dtype)

  def get_config(self):
    return {
      **super().get_config(),
      "num_values": self.num_values,
      "num_variables": self.num_variables,
      "hidden_units": self.hidden_units,
    }
