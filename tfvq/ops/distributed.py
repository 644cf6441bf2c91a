"""Sums over the replicas of a `tf.distribute` strategy; with one replica they have no effect."""

import tensorflow as tf


def num_replicas() -> int:
  """Number of replicas in sync that run this code."""
  context = tf.distribute.get_replica_context()
  return 1 if context is None else context.num_replicas_in_sync


def share_of_loss(loss: tf.Tensor, added: tf.Tensor, num_examples: tf.Tensor, training: bool = True) -> tf.Tensor:
  """Weights a replica's losses by its part of the global batch, because Keras sums the gradients of all replicas.

  Args:
    loss: Mean over this replica's examples, float scalar.
    added: Losses that layers have added, float scalar: its mean over the replicas is that of the global batch.
    num_examples: Number of this replica's examples, float scalar; it may differ between replicas, and may be zero.
    training: Whether the gradient is needed.

  Returns:
    The loss and the mean of `added` over the replicas, divided by the number of replicas; Keras's loss metric
    multiplies by that number. The gradient of `loss` is weighted by the fraction of all examples that this replica has.
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
  """A vector [num_replicas] with a scalar at this replica's index; the sum over replicas has the scalars of all."""
  if num_replicas() == 1:
    return value[tf.newaxis]
  replica = tf.distribute.get_replica_context().replica_id_in_sync_group
  return value * tf.one_hot(replica, num_replicas(), dtype=value.dtype)


def replica_id() -> tf.Tensor | int:
  """Index of this replica."""
  return 0 if num_replicas() == 1 else tf.distribute.get_replica_context().replica_id_in_sync_group


def sum_over_replicas(*values: tf.Tensor) -> list[tf.Tensor]:
  """Sums of tensors of one dtype over all replicas, the same on each.

  They are summed in one reduction: separate ones might start in a different order on each replica, and deadlock.
  """
  if num_replicas() == 1:
    return list(values)
  flat = _sum_over_replicas(tf.concat([tf.reshape(value, [-1]) for value in values], axis=0))
  parts = tf.split(flat, [tf.size(value) for value in values])
  return [tf.reshape(part, tf.shape(value)) for part, value in zip(parts, values, strict=True)]


def _sum_over_replicas(value):
  context = tf.distribute.get_replica_context()
  if isinstance(context.strategy, tf.distribute.MirroredStrategy) and "CPU" in str(context.devices):
    # Reduces on one device: collective operations of two strategies in one process would use the same keys.
    reduce = lambda strategy, values: strategy.extended.reduce_to(tf.distribute.ReduceOp.SUM, values, values)
    return context.merge_call(reduce, args=(value,))
  return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
