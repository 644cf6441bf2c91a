"""Pruning of WaveNets during further training: blocks of weights, whole channels, or whole layers.

References: arXiv 1710.01878 (the cubic schedule); LeCun et al., "Optimal Brain Damage", 1989 (the saliency).
"""

from collections.abc import Callable

import keras
import numpy as np

from tfvq.errors import UserError
from tfvq.models import WaveNet
from tfvq.models.wavenet_pruning import Importance, Mask, magnitude
from tfvq.training.callbacks import steps_done
from tfvq.training.muon import PruningMuon

_EVERY_STEPS = 10  # steps between two updates of the masks


class Pruning(keras.callbacks.Callback):
  """Sets more and more of a WaveNet's weights to zero, and keeps them at zero.

  After `t` steps the sparsity is s (1 - (1 - t / R)^3), and s from R steps on. The masks are applied after every step
  of the optimiser. The weights with the lowest `saliency` are pruned first.

  Args:
    wavenet: The network: the trained model, or a part of it.
    choose: Function from `wavenet`, a sparsity and an importance to masks, such as `block_masks`.
    sparsity: s, the final fraction of blocks, channels or layers that are pruned, in [0, 1).
    ramp_steps: R, >= 1.

  Raises:
    UserError: The optimiser keeps no second moments.
  """

  def __init__(self, wavenet: WaveNet, choose: Callable[..., list[Mask]], sparsity: float, ramp_steps: int):
    super().__init__()
    self._wavenet, self._choose = wavenet, choose
    self._sparsity, self._ramp_steps = sparsity, ramp_steps

  def on_train_begin(self, logs=None):
    del logs
    self.model.optimizer.build(self.model.trainable_variables)
    # A resumed training run finds the same masks again: weights that are zero already are pruned first.
    step = steps_done(self.model)
    self._choose_at(step if step >= self._ramp_steps else step // _EVERY_STEPS * _EVERY_STEPS)

  def on_train_batch_end(self, batch, logs=None):
    del batch, logs
    step = steps_done(self.model)
    if step <= self._ramp_steps and (step % _EVERY_STEPS == 0 or step == self._ramp_steps):
      self._choose_at(step)
    apply_masks(self._masks)

  def _choose_at(self, step):
    progress = min(1.0, step / self._ramp_steps)
    sparsity = self._sparsity * (1 - (1 - progress) ** 3)
    self._masks = self._choose(self._wavenet, sparsity, saliency(self.model.optimizer))


def apply_masks(masks: list[Mask]) -> None:
  """Multiplies each variable by its mask."""
  for variable, mask in masks:
    variable.assign(variable * mask)


def saliency(optimizer: keras.optimizers.Optimizer) -> Importance:
  """The importance |w| sqrt(E[g^2]) of weights w, with the optimiser's running mean of the squared gradients g.

  If E[g^2] approximates the curvature, half the square of the importance is the increase of the loss if the weight is
  set to zero.

  Raises:
    UserError: The optimiser keeps no second moments, or its updates would depend on pruned weights.
  """
  if isinstance(optimizer, PruningMuon):
    second_moments = optimizer.second_moments
  elif isinstance(optimizer, keras.optimizers.Adam):
    second_moments = lambda variable: optimizer._velocities[optimizer._get_variable_index(variable)]
  else:
    raise UserError("Pruning needs second moments of the gradients: set train.prune.optimizer to adam or pruning_muon.")
  return lambda variable: magnitude(variable) * np.sqrt(np.array(second_moments(variable)))
