"""The Muon optimiser for convolutional networks."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("tfvq")
class ConvMuon(keras.optimizers.Muon):
  """`keras.optimizers.Muon`, which orthogonalises the updates of matrices, for convolution kernels too.

  A kernel [height, width, C_in, C_out] is treated as a matrix [height width C_in, C_out]. As in the parent class, Adam
  updates embeddings and variables of fewer than two dimensions.
  """

  def _should_use_adamw(self, variable):
    return len(variable.shape) < 2 or "embedding" in variable.path.lower()

  def _muon_update_step(self, gradient, variable, lr, m):
    self.assign_add(m, ops.add(gradient, m * (self.momentum - 1)))
    # The learning rate is float32, whatever the dtype of the variable.
    matrix = ops.cast(ops.reshape(gradient + self.momentum * m, (-1, variable.shape[-1])), "float32")
    update = ops.cast(self.lr_adjust(lr * self.zeropower_via_newtonschulz5(matrix, self.ns_steps)), variable.dtype)
    self.assign_sub(variable, ops.reshape(update, variable.shape))


@keras.saving.register_keras_serializable("tfvq")
class PruningMuon(ConvMuon):
  """`ConvMuon` for a network that is being pruned: it ignores the gradients of weights that are zero.

  With these gradients, the orthogonalised updates of the other weights would be too small. It also keeps running means
  of the squared gradients, see `second_moments`.
  """

  def build(self, variables):
    if self.built:
      return
    super().build(variables)
    self._second_moments = [
      self.add_variable_from_reference(variable, name="second_moment") if velocity is None else velocity
      for variable, velocity in zip(variables, self.adam_velocities, strict=True)
    ]

  def second_moments(self, variable):
    """The running mean of a variable's squared gradients, of its shape."""
    return self._second_moments[self._get_variable_index(variable)]

  def _muon_update_step(self, gradient, variable, lr, m):
    second_moments = self.second_moments(variable)
    self.assign_add(second_moments, (ops.square(gradient) - second_moments) * (1 - self.adam_beta_2))
    super()._muon_update_step(gradient * ops.cast(variable != 0, gradient.dtype), variable, lr, m)
