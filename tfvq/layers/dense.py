"""A dense layer whose matrix product may have a lower precision in training."""

import keras

from tfvq.ops.matmul import matmul


@keras.saving.register_keras_serializable("tfvq")
class Dense(keras.layers.Dense):
  """`keras.layers.Dense` with the product precision that `tfvq.ops.matmul.matmul_precision` sets.

  It has the name of its parent, by which saved models find its weights.

  Args:
    units: D.
    **kwargs: As for `keras.layers.Dense`.

  Input shape:
    Float [..., C], of the layer's compute dtype or that of factors.

  Output shape:
    Float [..., D] of the layer's compute dtype.

  Training behaviour:
    Kernel and bias learn by their gradients.

  Example:
    >>> Dense(8)(tf.zeros([2, 10, 4])).shape
    TensorShape([2, 10, 8])
  """

  def __init__(self, units: int, **kwargs):
    super().__init__(units, **{**kwargs, "autocast": False})

  def call(self, inputs, training=None):
    del training
    x = matmul(inputs, self.kernel, self.compute_dtype)
    if self.use_bias:
      x += keras.ops.cast(self.bias, self.compute_dtype)
    return self.activation(x)
