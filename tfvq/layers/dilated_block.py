"""A layer of the WaveNet: a gated, dilated causal convolution."""

import keras
import tensorflow as tf

from tfvq.layers.dense import Dense
from tfvq.ops.gated import gated_activation
from tfvq.ops.matmul import as_factor, matmul


@keras.saving.register_keras_serializable("tfvq")
class DilatedBlock(keras.layers.Layer):
  """A causal convolution with two taps `dilation_rate` steps apart, a gated activation and a residual connection.

  Activations are time-major and flat, [T * B, C], with step t of example b in row t B + b. A delay is then a slice of
  rows, and a convolution is one matrix product of [past, present].

  Reference: arXiv 1609.03499, sections 2.1, 2.3 and 2.4.
  Deviation: the skip connection is the gated activation itself; the model projects the skip connections of all layers
  at once.

  Args:
    channels: C, residual and skip channels, >= 1.
    dilation_rate: Steps between the two taps, >= 1.
    last: Whether this is the last block. Only its skip connection is used then: x is returned unchanged, and there is
      no residual projection.
    **kwargs: As for `keras.layers.Layer`.

  Raises:
    ValueError: A size is out of its range.

  Input shape:
    `(x, projected)`: x, float [T B, C]; the projected condition, which is added to the pre-activations, float
    [F, 1, B or 1, 2C], where T is a multiple of F and each frame covers T / F steps. `batch_size`: B.

  Output shape:
    `(x, skip)`, float [T B, C] each.

  Example:
    >>> block = DilatedBlock(channels=8, dilation_rate=2)
    >>> x, skip = block((tf.zeros([10 * 3, 8]), tf.zeros([5, 1, 3, 16])), batch_size=3)
    >>> x.shape, skip.shape
    (TensorShape([30, 8]), TensorShape([30, 8]))
  """

  def __init__(self, channels: int, dilation_rate: int, last: bool = False, **kwargs):
    super().__init__(**kwargs)
    if channels < 1 or dilation_rate < 1:
      raise ValueError(f"channels and dilation_rate must be at least 1, not {channels}, {dilation_rate}.")
    self.channels = channels
    self.dilation_rate = dilation_rate
    self.last = last
    self.conv = Dense(2 * channels, dtype=self.dtype_policy, name="conv")  # of [past, present]
    self.residual = None if last else Dense(channels, dtype=self.dtype_policy, name="residual")

  def build(self, input_shape):
    del input_shape
    self.conv.build((None, 2 * self.channels))
    if not self.last:
      self.residual.build((None, self.channels))
    self.built = True

  def call(self, inputs, batch_size):
    x, projected = inputs
    delay = tf.minimum(self.dilation_rate * batch_size, tf.shape(x)[0])
    present = as_factor(x)
    # The gradients of tf.slice and tf.pad are several times as fast as those of x[...] and tf.concat.
    past = tf.pad(tf.slice(present, [0, 0], [tf.shape(x)[0] - delay, self.channels]), [[delay, 0], [0, 0]])
    gates = matmul(tf.concat([past, present], axis=-1), self.conv.kernel, x.dtype)
    frames = tf.reshape(gates, [tf.shape(projected)[0], -1, batch_size, 2 * self.channels])
    # There are fewer frames than steps, so the gradient of the bias is cheaper if it is added to the frames.
    projected += tf.cast(self.conv.bias, x.dtype)
    skip = as_factor(gated_activation(tf.reshape(frames + projected, tf.shape(gates))))
    return self._output(x, skip), skip

  def step(self, x, past, projected):
    """Computes one step.

    Args:
      x: Input of this step, float [B, C].
      past: Input of `dilation_rate` steps before, float [B, C].
      projected: Projected condition of this step, float [B or 1, 2C].

    Returns:
      `(x, skip)`, float [B, C] each.
    """
    skip = gated_activation(self.conv(tf.concat([past, x], axis=-1)) + projected)
    return self._output(x, skip), skip

  def _output(self, x, skip):
    return x if self.last else x + self.residual(skip)

  def get_config(self):
    return {
      **super().get_config(),
      "channels": self.channels,
      "dilation_rate": self.dilation_rate,
      "last": self.last,
    }
