"""Sums over the replicas of a `tf.distribute` strategy, without effect where there is one replica."""

import tensorflow as tf


def sum_over_replicas(value: tf.Tensor) -> tf.Tensor:
  """Sum of `value` over all replicas, the same on each."""
  context = tf.distribute.get_replica_context()
  if context is None or context.num_replicas_in_sync == 1:
    return value
  return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def replica_range(num_local: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
  """Places this replica's items in the global batch.

  Args:
    num_local: Number of items on this replica, int scalar.

  Returns:
    `(offset, total)`, int scalars: the items of the replicas before this one, and of all.
  """
  context = tf.distribute.get_replica_context()
  if context is None or context.num_replicas_in_sync == 1:
    return tf.zeros_like(num_local), num_local
  replica = context.replica_id_in_sync_group
  numbers = sum_over_replicas(num_local * tf.one_hot(replica, context.num_replicas_in_sync, dtype=num_local.dtype))
  return tf.cumsum(numbers, exclusive=True)[replica], tf.reduce_sum(numbers)
