"""A layer of the gated PixelCNN with a vertical and a horizontal stack."""

from typing import NamedTuple

import keras
import tensorflow as tf

from tfvq.layers.causal_conv2d import HorizontalConv2D, VerticalConv2D
from tfvq.ops.gated import gated_activation


class GatedBlockPast(NamedTuple):
  """State of a `GatedBlock` in generation: its inputs of earlier rows and columns."""

  vertical: tf.Tensor  # [B, reach, W, C]
  horizontal: tf.Tensor  # [B, reach * C]


@keras.saving.register_keras_serializable("tfvq")
class GatedBlock(keras.layers.Layer):
  """Gated convolutions of both stacks; the vertical stack feeds the horizontal one.

  The receptive field of the two stacks together has no blind spot: it covers every pixel above and to the left.

  Reference: arXiv 1606.05328, figure 2.
  Deviation: the vertical stack has a residual connection too, and its gated output feeds the horizontal stack. The
  skip connection is the gated activation itself; the model projects the skip connections of all layers at once.

  Args:
    filters: C, channels of both stacks, >= 1.
    kernel_size: Width of the kernels before masking, odd.
    last: Whether this is the last block. The horizontal output is not used then: it is returned unchanged, and there is
      no residual projection.
    **kwargs: As for `keras.layers.Layer`.

  Input shape:
    `(vertical, horizontal, condition)`: float [B, H, W, C] twice; condition None or float [B, 1 or H, 1 or W, E].

  Output shape:
    `(vertical, horizontal, skip)`, float [B, H, W, C] each.

  Example:
    >>> x = tf.zeros([2, 5, 5, 8])
    >>> vertical, horizontal, skip = GatedBlock(filters=8, kernel_size=3)((x, x, None))
    >>> skip.shape
    TensorShape([2, 5, 5, 8])
  """

  def __init__(self, filters: int, kernel_size: int, last: bool = False, **kwargs):
    super().__init__(**kwargs)
    self.filters = filters
    self.kernel_size = kernel_size
    self.last = last
    self.vertical_conv = VerticalConv2D(2 * filters, kernel_size, dtype=self.dtype_policy, name="vertical")
    self.horizontal_conv = HorizontalConv2D(2 * filters, kernel_size, dtype=self.dtype_policy, name="horizontal")
    self.vertical_to_horizontal = keras.layers.Dense(
      2 * filters, use_bias=False, dtype=self.dtype_policy, name="vertical_to_horizontal"
    )
    self.residual = None if last else keras.layers.Dense(filters, dtype=self.dtype_policy, name="residual")
    self.condition = keras.layers.Dense(4 * filters, use_bias=False, dtype=self.dtype_policy, name="condition")

  def build(self, input_shape):
    vertical, horizontal, condition = input_shape
    self.vertical_conv.build(vertical)
    self.horizontal_conv.build(horizontal)
    self.vertical_to_horizontal.build(vertical)
    if not self.last:
      self.residual.build(horizontal)
    if condition is not None:
      self.condition.build(condition)
    self.built = True

  def call(self, inputs):
    vertical, horizontal, condition = inputs
    for_vertical, for_horizontal = self.project_condition(condition)
    vertical = self._vertical(vertical, self.vertical_conv(vertical), for_vertical)
    from_vertical = self.vertical_to_horizontal(vertical) + for_horizontal
    skip = gated_activation(self.horizontal_conv(horizontal) + from_vertical)
    return vertical, self._horizontal(horizontal, skip), skip

  def project_condition(self, condition):
    """Projects a condition to the pre-activations of both stacks; zeros if there is none.

    Args:
      condition: Float [B, H or 1, W or 1, E], or None.

    Returns:
      `(for_vertical, for_horizontal)`, float [B or 1, H or 1, W or 1, 2C] each.
    """
    if condition is None:
      zeros = tf.zeros([1, 1, 1, 2 * self.filters], self.compute_dtype)
      return zeros, zeros
    for_vertical, for_horizontal = tf.split(self.condition(condition), 2, axis=-1)
    return for_vertical, for_horizontal

  def _vertical(self, vertical, convolved, for_vertical):
    return vertical + gated_activation(convolved + for_vertical)

  def _horizontal(self, horizontal, skip):
    return horizontal if self.last else horizontal + self.residual(skip)

  def initial_past(self, batch_size, width) -> GatedBlockPast:
    """The state before the first pixel of the first row, zeros."""
    return GatedBlockPast(
      self.vertical_conv.initial_past(batch_size, width), self.horizontal_conv.initial_past(batch_size)
    )

  def row(self, vertical, past, for_vertical, for_horizontal):
    """Computes one row of the vertical stack.

    Args:
      vertical: Float [B, 1, W, C].
      past: `GatedBlockPast.vertical` after the row before.
      for_vertical: This row of the condition projected for the vertical stack, float [B or 1, 1, W or 1, 2C].
      for_horizontal: The same for the horizontal stack.

    Returns:
      `(vertical [B, 1, W, C], from_vertical [B, 1, W, 2C], past of the next row)`.
    """
    convolved, past = self.vertical_conv.row(vertical, past)
    vertical = self._vertical(vertical, convolved, for_vertical)
    return vertical, self.vertical_to_horizontal(vertical) + for_horizontal, past

  def step(self, horizontal, past, from_vertical):
    """Computes one pixel of the horizontal stack.

    Args:
      horizontal: Float [B, C].
      past: `GatedBlockPast.horizontal` after the pixel before.
      from_vertical: This pixel of the `from_vertical` that `row` returned, float [B, 2C].

    Returns:
      `(horizontal [B, C], skip [B, C], past of the next pixel)`.
    """
    convolved, past = self.horizontal_conv.step(horizontal, past)
    skip = gated_activation(convolved + from_vertical)
    return self._horizontal(horizontal, skip), skip, past

  def get_config(self):
    return {**super().get_config(), "filters": self.filters, "kernel_size": self.kernel_size, "last": self.last}
