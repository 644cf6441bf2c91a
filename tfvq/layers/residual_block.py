"""The residual block of the image encoders and decoders."""

import keras


@keras.saving.register_keras_serializable("tfvq")
class ResidualBlock(keras.layers.Layer):
  """x + Conv1x1(ReLU(Conv3x3(ReLU(x)))).

  Reference: arXiv 1711.00937, section 4.1.

  Args:
    hidden_units: Channels of the input and the output, >= 1.
    residual_units: Channels between the two convolutions, >= 1; None means `hidden_units`, as in the paper.
    **kwargs: As for `keras.layers.Layer`.

  Input shape:
    Float [B, H, W, hidden_units].

  Output shape:
    Float [B, H, W, hidden_units].

  Example:
    >>> ResidualBlock(hidden_units=8, residual_units=4)(tf.zeros([2, 5, 5, 8])).shape
    TensorShape([2, 5, 5, 8])
  """

  def __init__(self, hidden_units: int, residual_units: int | None = None, **kwargs):
    super().__init__(**kwargs)
    self.hidden_units = hidden_units
    self.residual_units = residual_units or hidden_units
    self.conv3x3 = keras.layers.Conv2D(self.residual_units, 3, padding="same", dtype=self.dtype_policy, name="conv3x3")
    self.conv1x1 = keras.layers.Conv2D(hidden_units, 1, dtype=self.dtype_policy, name="conv1x1")

  def build(self, input_shape):
    self.conv3x3.build(input_shape)
    self.conv1x1.build((*input_shape[:-1], self.residual_units))
    self.built = True

  def call(self, x):
    h = self.conv3x3(keras.ops.relu(x))
    return x + self.conv1x1(keras.ops.relu(h))

  def compute_output_shape(self, input_shape):
    return input_shape

  def get_config(self):
    return {**super().get_config(), "hidden_units": self.hidden_units, "residual_units": self.residual_units}
