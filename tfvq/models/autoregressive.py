"""The base class of all autoregressive models: conditions, likelihood, training and metrics."""

import abc
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfvq.models.likelihood_model import LikelihoodModel, split_condition
from tfvq.ops.empty_batch import for_any_batch
from tfvq.ops.values import check_values, outside


class Condition(NamedTuple):
  """Specification of one of the tensors that a model is conditioned on."""

  shape: tuple[int | None, ...]  # of one example; None stands for any size
  num_values: int | None = None  # None for floats, else the values are integers in 0..num_values-1

  @property
  def spec(self) -> keras.InputSpec:
    """Shape and dtype of a batch."""
    return keras.InputSpec(shape=(None, *self.shape), dtype="int32" if self.num_values else "float32")

  def accepts(self, shape: tf.TensorShape) -> bool:
    """Whether a tensor may have this shape, [B, ...]. Any size but the last may be 1, which is broadcast."""
    if shape.rank != 1 + len(self.shape):
      return shape.rank is None
    last = len(self.shape) - 1
    return all(
      None in (size, wanted) or size == wanted or (size == 1 and axis < last)
      for axis, (size, wanted) in enumerate(zip(shape[1:], self.shape, strict=True))
    )


class AutoregressiveModel(LikelihoodModel):
  """A model that predicts the values of each position from those of all positions before it.

  Positions are the steps of a sequence [T] or the pixels of a grid [H, W]. Each position has G integers in 0..K-1.

  Subclasses set `head`, the output distribution of a position (`tfvq.layers.CategoricalHead` or
  `tfvq.layers.LogisticMixtureHead`), with `num_values` K, `num_variables` G, `noise_shape`, `head(features, x)` ->
  parameters, `log_prob(parameters, x)` -> nats and `sample(features, noise, temperature)` -> values. They implement

  - `value_shape`, `num_position_axes` and `conditions`: the shapes of the inputs;
  - `features(x, condition, training)`: runs the whole network for all positions, in training and for likelihoods;
  - `project_condition(condition)`: the condition's contribution to the pre-activations, computed once per sample;
  - `initial_state(batch_size)`: the state of generation before the first position;
  - `step(x_before, state, projected) -> (features [B, C], state)`: computes the next position from the values [B, G] of
    the position before it, which are ignored for the first position;
  - for grids, `row(x_above, state, projected) -> state`: begins the next row, given the values [B, W, G] of the row
    above it, which are ignored for the first row. `step` is then called without `projected`.

  `tfvq.models.sample` samples from any such model.

  Input shape:
    x: integers [B, *value_shape]; or a pair (x, condition), where condition is a dict of the tensors that `conditions`
    names.

  Output shape:
    Parameters of the output distribution, float [B, positions..., G, parameters].

  Training behaviour:
    `compile(optimizer)` and `fit` on `x` or `((x, condition),)` minimise the negative log-likelihood in nats per value.
    The metric `bits_per_value` is the same in bits.
  """

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self._bits_per_value = keras.metrics.Mean(name="bits_per_value")

  @property
  @abc.abstractmethod
  def value_shape(self) -> tuple[int | None, ...]:
    """Shape of an example: the sizes of the position axes, None for any size; then G, unless the axis is left out."""

  @property
  @abc.abstractmethod
  def num_position_axes(self) -> int:
    """1 for sequences, 2 for grids."""

  @property
  @abc.abstractmethod
  def conditions(self) -> dict[str, Condition]:
    """The tensors that the model is conditioned on, by name; empty if there are none."""

  @abc.abstractmethod
  def features(self, x, condition=None, training=False) -> tf.Tensor:
    """Features of each position, computed from the positions before it.

    Args:
      x: Values, int32 [B, positions..., G].
      condition: A dict of the tensors that `conditions` names, or None.
      training: Whether layers such as dropout behave as in training.

    Returns:
      Float [B, positions..., C].
    """

  @abc.abstractmethod
  def project_condition(self, condition=None):
    """Projects a condition to the pre-activations of all layers; zeros if there is none."""

  @abc.abstractmethod
  def initial_state(self, batch_size: int):
    """The state before the first position."""

  @abc.abstractmethod
  def step(self, x_before, state, projected=None):
    """Computes the features [B, C] of the next position, and the state after it."""

  def call(self, inputs, training=False):
    x, condition = split_condition(inputs)
    parameters = lambda x, condition: self.head(self.features(x, condition, training), x)
    return for_any_batch(parameters, self.with_variables(x), condition)

  def log_prob(self, x, condition=None, training=False) -> tf.Tensor:
    """Log-likelihood in nats, integers [B, *value_shape] -> float [B].

    Args:
      x: The values.
      condition: A dict of the tensors that `conditions` names, or None.
      training: Whether layers such as dropout behave as in training.

    Returns:
      Float [B]. In a graph, an example with an integer out of its range, in x or the condition, gives NaN.

    Raises:
      ValueError: The condition has wrong names or shapes, or, in eager mode, an integer is out of its range.
    """
    x, condition = self.with_variables(x), self.checked_condition(condition)
    check_values(x, self.head.num_values, f"Values of {self.name}")
    is_outside = self._is_outside(x, condition)
    # Look-ups of integers out of range raise an error, or return anything, depending on the device.
    x = tf.clip_by_value(x, 0, self.head.num_values - 1)
    clipped = {name: tf.clip_by_value(condition[name], 0, size - 1) for name, size in self._condition_sizes().items()}
    log_prob = self.log_prob_per_position(x, {**condition, **clipped}, training)
    log_prob = tf.reduce_sum(log_prob, axis=list(range(1, log_prob.shape.rank)))
    return tf.where(is_outside, tf.constant(np.nan, log_prob.dtype), log_prob)

  def log_prob_per_position(self, x, condition=None, training=False) -> tf.Tensor:
    """The terms of `log_prob` for each position in nats, int32 [B, positions..., G] -> float [B, positions...]."""
    return self.head.log_prob(self.head(self.features(x, condition, training), x), x)

  def with_variables(self, x) -> tf.Tensor:
    """Casts values to int32 [B, positions..., G]; adds the axis of G if `value_shape` lacks it."""
    x = tf.cast(x, tf.int32)
    return x if len(self.value_shape) > self.num_position_axes else x[..., tf.newaxis]

  def checked_condition(self, condition) -> dict[str, tf.Tensor]:
    """Checks a condition.

    Returns:
      Its tensors by name, without those that are None.

    Raises:
      ValueError: The condition has wrong names or shapes, or, in eager mode, an integer is out of its range.
    """
    if condition is not None and not isinstance(condition, dict):
      raise ValueError(f"The condition of {self.name} must be a dict of named tensors or None, not {type(condition)}.")
    given = {name: tf.convert_to_tensor(value) for name, value in (condition or {}).items() if value is not None}
    if given.keys() != self.conditions.keys():
      raise ValueError(
        f"{self.name} is conditioned on {_listed(self.conditions)}, but the condition given has {_listed(given)}."
      )
    for name, wanted in self.conditions.items():
      if not wanted.accepts(given[name].shape):
        raise ValueError(
          f"The condition {name!r} of {self.name} must have the shape {(None, *wanted.shape)}, but has "
          f"{tuple(given[name].shape)}."
        )
      if wanted.num_values:
        check_values(given[name], wanted.num_values, f"Values of the condition {name!r} of {self.name}")
    return given

  def example_losses(self, x, y_pred, training):
    """Negative log-likelihood of each example in nats per value, float [B]."""
    del training
    x, _ = split_condition(x)
    log_prob = self.head.log_prob(y_pred, self.with_variables(x)) / self.head.num_variables
    nll_nats = -tf.reduce_mean(log_prob, axis=list(range(1, 1 + self.num_position_axes)))
    self._bits_per_value.update_state(nll_nats / np.log(2))
    return nll_nats

  def is_flagged(self, x):
    x, condition = split_condition(x)
    return self._is_outside(self.with_variables(x), condition)

  def check_flagged(self, share):
    if share:
      sizes = {"value": self.head.num_values, **self._condition_sizes()}
      wrong = " or ".join(f"a {name} outside 0..{size - 1}" for name, size in sizes.items())
      raise ValueError(f"{share:.1%} of the examples for {self.name} have {wrong}.")

  def _is_outside(self, x, condition):
    """Whether an example has an integer out of its range, int32 [B, positions..., G] and its condition -> bool [B]."""
    is_outside = outside(x, self.head.num_values)
    for name, size in self._condition_sizes().items():
      is_outside |= outside(condition[name], size)
    return is_outside

  def _condition_sizes(self):
    """The number of values of each condition of integers, by name."""
    return {name: condition.num_values for name, condition in self.conditions.items() if condition.num_values}

  def input_signature(self):
    x = keras.InputSpec(shape=(None, *self.value_shape), dtype="int32")
    condition = {name: wanted.spec for name, wanted in self.conditions.items()}
    return [(x, condition)] if condition else [x]


def _listed(names):
  """Names for a sentence."""
  return " and ".join(map(repr, names)) or "nothing"
