"""Checks that integers lie in the range a model was made for."""

import tensorflow as tf


def outside(values: tf.Tensor, num_values: int) -> tf.Tensor:
  """Which examples have a value outside 0..num_values-1, integers [B, ...] -> boolean [B]."""
  values = tf.convert_to_tensor(values)
  return tf.reduce_any((values < 0) | (values >= num_values), axis=list(range(1, values.shape.rank)))


def check_range(values, num_values: int, name: str) -> None:
  """Refuses integers outside 0..num_values-1; does nothing in a graph, where values are not known yet.

  Args:
    values: Integers [...].
    num_values: Number of values.
    name: What the error message calls them.

  Raises:
    ValueError: A value is out of range.
  """
  values = tf.convert_to_tensor(values)
  if not tf.executing_eagerly() or not tf.size(values):
    return
  lowest, highest = int(tf.reduce_min(values)), int(tf.reduce_max(values))
  if lowest < 0 or highest >= num_values:
    raise ValueError(f"{name} must lie in 0..{num_values - 1}, but range over {lowest}..{highest}.")
