"""Range checks of integer inputs."""

import tensorflow as tf


def check_values(values: tf.Tensor, num_values: int, name: str) -> None:
  """Checks that integers are in their range, in eager mode only.

  In a graph, an invalid label of a cross-entropy raises an `InvalidArgumentError` on a CPU, and gives NaN under XLA and
  on a GPU. An invalid index of an embedding may be clipped or wrapped silently.

  Args:
    values: Integers [...]; a symbolic tensor is not checked.
    num_values: K, the number of values.
    name: Plural noun for the values, with which the error begins.

  Raises:
    ValueError: A value is not in 0..K-1.
  """
  if not tf.executing_eagerly() or not hasattr(values, "numpy") or not tf.size(values):
    return
  lowest, highest = int(tf.reduce_min(values)), int(tf.reduce_max(values))
  if lowest < 0 or highest >= num_values:
    raise ValueError(f"{name} must be in 0..{num_values - 1}, but they are in {lowest}..{highest}.")


def outside(values: tf.Tensor, num_values: int) -> tf.Tensor:
  """Which examples have a value outside 0..num_values-1, integers [B, ...] -> boolean [B]."""
  values = tf.convert_to_tensor(values)
  return tf.reduce_any((values < 0) | (values >= num_values), axis=list(range(1, values.shape.rank)))
