"""Reductions over the replicas of a `tf.distribute` strategy; they do nothing if there is only one replica."""

import tensorflow as tf


def num_replicas() -> int:
  """Number of replicas that run this code in sync."""
  context = tf.distribute.get_replica_context()
  return 1 if context is None else context.num_replicas_in_sync


def share_of_loss(loss: tf.Tensor, added: tf.Tensor, num_examples: tf.Tensor, training: bool = True) -> tf.Tensor:
  """Weights a replica's loss by its fraction of the global batch, because Keras sums the gradients of all replicas.

  Args:
    loss: Mean loss of this replica's examples, float scalar.
    added: Sum of the losses that layers added, float scalar. Its mean over the replicas is that of the global batch.
    num_examples: Number of this replica's examples, float scalar; it may differ between replicas, and may be zero.
    training: Whether the gradient is needed.

  Returns:
    A scalar. Its value is `loss` plus the mean of `added` over the replicas, divided by the number of replicas, because
    Keras's loss metric multiplies by that number. In its gradient, `loss` is weighted by this replica's fraction of the
    examples.
  """
  if num_replicas() == 1:
    return loss + added
  num_all, added_by_all = sum_over_replicas(num_examples, tf.stop_gradient(added))
  share = (loss + added_by_all / num_replicas()) / num_replicas()
  if not training:
    return share
  weighted = tf.math.divide_no_nan(loss * num_examples, num_all) + added / num_replicas()
  return weighted + tf.stop_gradient(share - weighted)


def replica_seed(generator) -> tf.Tensor:
  """The next seed of a `keras.random.SeedGenerator` for `tf.random.stateless_*`, int32 [2], different per replica."""
  seed = tf.cast(tf.math.floormod(generator.next(), tf.int32.max - 1), tf.int32)
  return seed if num_replicas() == 1 else tf.random.experimental.stateless_fold_in(seed, replica_id())


def one_hot_replica(value: tf.Tensor) -> tf.Tensor:
  """A vector [num_replicas] of zeros, with a scalar at this replica's index; its sum over replicas has all scalars."""
  if num_replicas() == 1:
    return value[tf.newaxis]
  replica = tf.distribute.get_replica_context().replica_id_in_sync_group
  return value * tf.one_hot(replica, num_replicas(), dtype=value.dtype)


def replica_id() -> tf.Tensor | int:
  """Index of this replica."""
  return 0 if num_replicas() == 1 else tf.distribute.get_replica_context().replica_id_in_sync_group


def sum_over_replicas(*values: tf.Tensor) -> list[tf.Tensor]:
  """Sums each tensor over all replicas; all tensors have one dtype.

  This is one reduction. Several ones could start in a different order on each replica, and deadlock.
  """
  if num_replicas() == 1:
    return list(values)
  flat = _sum_over_replicas(tf.concat([tf.reshape(value, [-1]) for value in values], axis=0))
  parts = tf.split(flat, [tf.size(value) for value in values])
  return [tf.reshape(part, tf.shape(value)) for part, value in zip(parts, values, strict=True)]


def _sum_over_replicas(value):
  context = tf.distribute.get_replica_context()
  if isinstance(context.strategy, tf.distribute.MirroredStrategy) and "CPU" in str(context.devices):
    # Not a collective operation: those of two strategies in one process would use the same keys.
    reduce = lambda strategy, values: strategy.extended.reduce_to(tf.distribute.ReduceOp.SUM, values, values)
    return context.merge_call(reduce, args=(value,))
  return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
