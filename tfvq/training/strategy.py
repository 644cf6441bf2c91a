"""Distribution strategies: training on several devices."""

import os

import tensorflow as tf

from tfvq.errors import UserError


def make_strategy(name: str) -> tf.distribute.Strategy:
  """Makes the distribution strategy with a name, see `tfvq.configs.common.run_settings`.

  Raises:
    UserError: It is for TPUs, and there is none.
  """
  if name == "auto":
    if tf.config.list_logical_devices("TPU"):
      name = "tpu"
    else:
      name = "mirrored" if len(tf.config.list_logical_devices("GPU")) > 1 else "default"
  if name == "tpu":
    try:
      resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.OpError) as error:
      raise UserError(f"There is no TPU ({' '.join(str(error).split())}): set config.strategy to auto.") from error
    return tf.distribute.TPUStrategy(resolver)
  if name == "mirrored":
    return tf.distribute.MirroredStrategy()
  if name == "cores":
    return _strategy_of_cores()
  return tf.distribute.get_strategy()


def _strategy_of_cores():
  """A strategy with a replica of one thread on each core of the CPU, so that operations do not wait for other threads.

  It must be created before TensorFlow runs anything.
  """
  num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(num_cores)
  (cpu,) = tf.config.list_physical_devices("CPU")
  tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_cores)
  return tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices("CPU")])


def check_batch_size(batch_size: int, title: str, strategy: tf.distribute.Strategy) -> None:
  """Checks that batches can be divided evenly among the replicas of a strategy.

  Raises:
    UserError: The number of replicas does not divide `batch_size`.
  """
  num_replicas = strategy.num_replicas_in_sync
  if batch_size % num_replicas:
    raise UserError(
      f"{num_replicas} replicas cannot share the batches of {batch_size} of {title!r}: set its batch_size to a "
      f"multiple of {num_replicas}, or config.strategy to default."
    )
