"""Sums over the replicas of a `tf.distribute` strategy, without effect where there is one replica."""

import tensorflow as tf


def num_replicas() -> int:
  """Replicas that run this code in step."""
  context = tf.distribute.get_replica_context()
  return 1 if context is None else context.num_replicas_in_sync


def share_of_loss(loss: tf.Tensor, num_examples: tf.Tensor, training: bool = True) -> tf.Tensor:
  """A replica's mean loss as its share of the global batch's: Keras adds up the gradients of all replicas.

  Args:
    loss: Mean over this replica's examples, float scalar.
    num_examples: How many they are, float scalar; replicas may have different numbers, or none.
    training: Whether the gradient is needed.

  Returns:
    The loss divided by the number of replicas, by which Keras's own metric multiplies it again. Its gradient is
    weighted by the replica's share of the examples.
  """
  if num_replicas() == 1:
    return loss
  share = loss / num_replicas()
  if not training:
    return share
  (total,) = sum_over_replicas(num_examples)
  weighted = tf.math.divide_no_nan(loss * num_examples, total)
  return weighted + tf.stop_gradient(share - weighted)


def replica_seed(generator) -> tf.Tensor:
  """The next seed of a `keras.random.SeedGenerator` for `tf.random.stateless_*`, int32 [2], different per replica."""
  seed = tf.cast(tf.math.floormod(generator.next(), tf.int32.max - 1), tf.int32)
  return seed if num_replicas() == 1 else tf.random.experimental.stateless_fold_in(seed, replica_id())


def one_hot_replica(value: tf.Tensor) -> tf.Tensor:
  """A scalar at this replica's place in a vector of zeros [num_replicas]; summed over replicas it holds every one's."""
  if num_replicas() == 1:
    return value[tf.newaxis]
  replica = tf.distribute.get_replica_context().replica_id_in_sync_group
  return value * tf.one_hot(replica, num_replicas(), dtype=value.dtype)


def replica_id() -> tf.Tensor | int:
  """Index of this replica."""
  return 0 if num_replicas() == 1 else tf.distribute.get_replica_context().replica_id_in_sync_group


def sum_over_replicas(*values: tf.Tensor) -> list[tf.Tensor]:
  """Sums of tensors of one dtype over all replicas, the same on each.

  All go into one reduction: separate ones may start in another order on each replica, and then never meet.
  """
  if num_replicas() == 1:
    return list(values)
  flat = _sum_over_replicas(tf.concat([tf.reshape(value, [-1]) for value in values], axis=0))
  parts = tf.split(flat, [tf.size(value) for value in values])
  return [tf.reshape(part, tf.shape(value)) for part, value in zip(parts, values, strict=True)]


def _sum_over_replicas(value):
  context = tf.distribute.get_replica_context()
  if isinstance(context.strategy, tf.distribute.MirroredStrategy) and "CPU" in str(context.devices):
    # On one of the devices: collective operations of two strategies in one process take each other's keys.
    reduce = lambda strategy, values: strategy.extended.reduce_to(tf.distribute.ReduceOp.SUM, values, values)
    return context.merge_call(reduce, args=(value,))
  return context.all_reduce(tf.distribute.ReduceOp.SUM, value)
