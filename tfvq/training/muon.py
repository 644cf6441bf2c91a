"""Muon for networks of convolutions."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("tfvq")
class ConvMuon(keras.optimizers.Muon):
  """`keras.optimizers.Muon`, which orthogonalises the updates of matrices, for convolution kernels too.

  A kernel [height, width, C_in, C_out] is taken as the matrix [height width C_in, C_out] of the product that a
  convolution is. Embeddings, and variables of fewer than two dimensions, are left to Adam as in the parent class.
  """

  def _should_use_adamw(self, variable):
    return len(variable.shape) < 2 or "embedding" in variable.path.lower()

  def _muon_update_step(self, gradient, variable, lr, m):
    self.assign_add(m, ops.add(gradient, m * (self.momentum - 1)))
    matrix = ops.reshape(gradient + self.momentum * m, (-1, variable.shape[-1]))
    update = self.lr_adjust(lr * self.zeropower_via_newtonschulz5(matrix, self.ns_steps))
    self.assign_sub(variable, ops.reshape(update, variable.shape))
