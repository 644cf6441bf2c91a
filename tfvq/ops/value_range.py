"""Which examples of a batch have integers out of their range, found inside compiled steps too."""

import tensorflow as tf


def outside(values: tf.Tensor, num_values: int) -> tf.Tensor:
  """Which examples have a value outside 0..num_values-1, integers [B, ...] -> boolean [B]."""
  values = tf.convert_to_tensor(values)
  return tf.reduce_any((values < 0) | (values >= num_values), axis=list(range(1, values.shape.rank)))
