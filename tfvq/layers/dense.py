"""A dense layer whose matrix product may use a lower precision in training."""

import keras

from tfvq.ops.matmul import matmul


@keras.saving.register_keras_serializable("tfvq")
class Dense(keras.layers.Dense):
  """`keras.layers.Dense` with the precision that `tfvq.ops.matmul.matmul_precision` sets.

  The class has the name of its parent, because saved models find weights by it.

  Args:
    units: D, number of outputs, >= 1.
    **kwargs: As for `keras.layers.Dense`.

  Input shape:
    Float [..., C], of the layer's compute dtype or the dtype that `matmul_precision` sets.

  Output shape:
    Float [..., D] of the layer's compute dtype.

  Training behaviour:
    Kernel and bias are trained by their gradients.

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
