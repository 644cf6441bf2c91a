"""Causal convolutions over a grid in raster order: PixelCNN's masked convolutions without the masked weights.

PixelCNN masks a k x k kernel to zero below its centre row (vertical stack), or right of and outside its centre row
(horizontal stack). These layers have only the other weights: the same function with fewer multiplications. For
generation they also run one row or one pixel at a time. The caller then passes the earlier inputs that are still needed
from call to call, as `past`.
"""

import keras
import tensorflow as tf


class _CausalConv2D(keras.layers.Layer):
  """Base class of both directions: a kernel [height, width, C, filters] and a bias."""

  def __init__(self, filters: int, kernel_size: int, **kwargs):
    super().__init__(**kwargs)
    if kernel_size < 1 or kernel_size % 2 == 0:
      raise ValueError(f"kernel_size must be odd and positive, but is {kernel_size}.")
    self.filters = filters
    self.kernel_size = kernel_size
    self.reach = kernel_size // 2  # how many rows above, or columns to the left, an output depends on

  def _add_weights(self, height, width, channels):
    self.kernel = self.add_weight(shape=(height, width, channels, self.filters), name="kernel")
    self.bias = self.add_weight(shape=(self.filters,), initializer="zeros", name="bias")
    self.built = True

  def compute_output_shape(self, input_shape):
    return (*input_shape[:-1], self.filters)

  def get_config(self):
    return {**super().get_config(), "filters": self.filters, "kernel_size": self.kernel_size}

  def _convolve(self, x, padding):
    y = tf.nn.conv2d(x, self._cast(self.kernel), strides=1, padding=padding)
    return tf.nn.bias_add(y, self._cast(self.bias))

  def _cast(self, weight):
    """Casts a weight to the compute dtype, as Keras does in `call` only."""
    return tf.cast(tf.convert_to_tensor(weight), self.compute_dtype)


@keras.saving.register_keras_serializable("tfvq")
class VerticalConv2D(_CausalConv2D):
  """A convolution over a pixel's own row and `kernel_size // 2` rows above it, `kernel_size` columns wide.

  Reference: arXiv 1606.05328, section 2.2 (vertical stack).

  Args:
    filters: Output channels, >= 1.
    kernel_size: Width of the kernel, odd; its height is `kernel_size // 2 + 1`.
    **kwargs: As for `keras.layers.Layer`.

  Raises:
    ValueError: The kernel size is even or not positive.

  Input shape:
    Float [B, H, W, C].

  Output shape:
    Float [B, H, W, filters].

  Example:
    >>> VerticalConv2D(filters=8, kernel_size=3)(tf.zeros([2, 5, 5, 4])).shape
    TensorShape([2, 5, 5, 8])
  """

  def build(self, input_shape):
    self._add_weights(self.reach + 1, self.kernel_size, input_shape[-1])

  def call(self, x):
    return self._convolve(x, [[0, 0], [self.reach, 0], [self.reach, self.reach], [0, 0]])

  def initial_past(self, batch_size, width) -> tf.Tensor:
    """The rows above the grid, zeros [B, reach, W, C]."""
    return tf.zeros([batch_size, self.reach, width, self.kernel.shape[2]], self.compute_dtype)

  def row(self, x, past):
    """Computes one row: x [B, 1, W, C] and past [B, reach, W, C] -> ([B, 1, W, filters], past of the next row)."""
    x = tf.concat([past, x], axis=1)
    return self._convolve(x, [[0, 0], [0, 0], [self.reach, self.reach], [0, 0]]), x[:, 1:]


@keras.saving.register_keras_serializable("tfvq")
class HorizontalConv2D(_CausalConv2D):
  """A convolution over a pixel and `kernel_size // 2` pixels to the left of it.

  Reference: arXiv 1606.05328, section 2.2 (horizontal stack).

  Args:
    filters: Output channels, >= 1.
    kernel_size: Width of the kernel before masking, odd; the masked half is left out.
    **kwargs: As for `keras.layers.Layer`.

  Raises:
    ValueError: The kernel size is even or not positive.

  Input shape:
    Float [B, H, W, C].

  Output shape:
    Float [B, H, W, filters].

  Example:
    >>> HorizontalConv2D(filters=8, kernel_size=3)(tf.zeros([2, 5, 5, 4])).shape
    TensorShape([2, 5, 5, 8])
  """

  def build(self, input_shape):
    self._add_weights(1, self.reach + 1, input_shape[-1])

  def call(self, x):
    return self._convolve(x, [[0, 0], [0, 0], [self.reach, 0], [0, 0]])

  def initial_past(self, batch_size) -> tf.Tensor:
    """The columns left of the grid, zeros [B, reach * C]."""
    return tf.zeros([batch_size, self.reach * self.kernel.shape[2]], self.compute_dtype)

  def step(self, x, past):
    """Computes one pixel: x [B, C] and past [B, reach * C] -> ([B, filters], past of the next pixel)."""
    x = tf.concat([past, x], axis=-1)
    kernel = tf.reshape(self._cast(self.kernel), [-1, self.filters])
    return tf.nn.bias_add(tf.matmul(x, kernel), self._cast(self.bias)), x[:, self.kernel.shape[2] :]
