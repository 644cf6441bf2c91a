"""Range checks of integers."""

import tensorflow as tf


def check_values(values: tf.Tensor, num_values: int, name: str) -> None:
  """Checks in eager mode that integers are in their range.

  In a graph, the result depends on the device. A label of a cross-entropy that is out of range raises an
  `InvalidArgumentError` on a CPU, and gives NaN under XLA and on a GPU. An index of an embedding may be silently
  clipped or wrapped.

  Args:
    values: Integers [...]; a symbolic tensor is not checked.
    num_values: K, the number of values.
    name: Plural noun for the values, at the beginning of the error message.

  Raises:
    ValueError: A value is not in 0..K-1.
  """
  if not tf.executing_eagerly() or not hasattr(values, "numpy") or not tf.size(values):
    return
  lowest, highest = int(tf.reduce_min(values)), int(tf.reduce_max(values))
  if lowest < 0 or highest >= num_values:
    raise ValueError(f"{name} must be in 0..{num_values - 1}, but they are in {lowest}..{highest}.")


def outside(values: tf.Tensor, num_values: int) -> tf.Tensor:
  """Whether an example has a value outside 0..num_values-1, integers [B, ...] -> boolean [B]."""
  values = tf.convert_to_tensor(values)
  return tf.reduce_any((values < 0) | (values >= num_values), axis=list(range(1, values.shape.rank)))
