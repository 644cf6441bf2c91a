"""One way to train every model: strategy, optimiser, resumption, callbacks."""

import os
import pathlib
from collections.abc import Callable

import keras
import tensorflow as tf
from ml_collections import ConfigDict

import tfvq.models  # noqa: F401  Keras loads a model whose classes are imported
from tfvq.errors import UserError
from tfvq.ops.product import product_precision
from tfvq.training.callbacks import Checkpoint, Curves, ProgressBar, TerminateOnNonFiniteLoss, read_seconds, steps_done
from tfvq.training.loading import load_weights
from tfvq.training.muon import ConvMuon, PruningMuon


def make_strategy(name: str) -> tf.distribute.Strategy:
  """The distribution strategy of that name, see `tfvq.configs.common.run_settings`.

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
  """A replica for each core of the CPU, on one thread: no operation waits for another thread to do its part of it.

  It can be made only before TensorFlow has run anything.
  """
  num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  tf.config.threading.set_intra_op_parallelism_threads(1)
  tf.config.threading.set_inter_op_parallelism_threads(num_cores)
  (cpu,) = tf.config.list_physical_devices("CPU")
  tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_cores)
  return tf.distribute.MirroredStrategy([device.name for device in tf.config.list_logical_devices("CPU")])


def check_batch_size(batch_size: int, title: str, strategy: tf.distribute.Strategy) -> None:
  """Checks that the replicas of a strategy can share the batches of a training.

  Raises:
    UserError: Their number does not divide `batch_size`.
  """
  num_replicas = strategy.num_replicas_in_sync
  if batch_size % num_replicas:
    raise UserError(
      f"{num_replicas} replicas cannot share the batches of {batch_size} of {title!r}: set its batch_size to a "
      f"multiple of {num_replicas}, or config.strategy to default."
    )


def train(
  build_model: Callable[[], keras.Model],
  batches: Callable[[int, int], tf.data.Dataset],
  settings: ConfigDict,
  folder: pathlib.Path,
  *,
  title: str,
  strategy: tf.distribute.Strategy,
  prepare: Callable[[keras.Model, Callable], None] = lambda model, train_part: None,
  extra_callbacks: Callable[[keras.Model], list[keras.callbacks.Callback]] = lambda model: [],
) -> tuple[keras.Model, float]:
  """Trains a model, from its last checkpoint if there is one.

  Args:
    build_model: Makes the model.
    batches: Endless batches for `fit`, of a given size, from a given step on.
    settings: See `tfvq.configs.common.training`.
    folder: Where `checkpoint.keras` and `curves.csv` are kept.
    title: What the progress bar calls it.
    strategy: Distribution strategy.
    prepare: What is done to the model before its first step, such as setting its codebook to the data; left out if
      there are initial weights. Its second argument trains a part of the model in the same way, in a folder of its own:
      `train_part(name, part, settings, prepare)`.
    extra_callbacks: Called with the model, gives callbacks that come before those that watch and save.

  Returns:
    The trained model, and the seconds spent training, parts and interrupted runs included.

  Raises:
    UserError: The replicas cannot share a batch, the loss is no longer finite, or a file cannot be written.
  """
  checkpoint_path = folder / "checkpoint.keras"
  check_batch_size(settings.batch_size, title, strategy)

  def train_part(name, part, settings, prepare=lambda model, train_part: None):
    names = {"folder": folder / name, "title": f"{title}, {name}"}
    train(lambda: part, batches, settings, strategy=strategy, prepare=prepare, **names)

  with strategy.scope():
    model = build_model()
  if not checkpoint_path.exists():
    if settings.initial_weights:
      load_weights(model, settings.initial_weights)
    else:
      prepare(model, train_part)
  with strategy.scope():
    model.compile(
      make_optimizer(settings), jit_compile=settings.jit_compile or bool(tf.config.list_logical_devices("TPU"))
    )
    model.optimizer.build(model.trainable_variables)
  if checkpoint_path.exists():
    load_weights(model, checkpoint_path)
  step = steps_done(model)
  if step < settings.steps:
    curves = Curves(folder / "curves.csv", settings.log_every_steps)
    checkpoint = Checkpoint(checkpoint_path, settings.checkpoint_seconds)
    progress = ProgressBar(title, settings.steps, curves)
    callbacks = [*extra_callbacks(model), TerminateOnNonFiniteLoss(checkpoint_path), curves, checkpoint, progress]
    examples = batches(settings.batch_size, step)
    try:
      with product_precision(tf.bfloat16 if settings.bfloat16_products else None):
        model.fit(examples, steps_per_epoch=settings.steps - step, callbacks=callbacks, verbose=0, shuffle=False)
    except KeyboardInterrupt as stop:
      if checkpoint.model:  # training had begun
        checkpoint.save()
      step = steps_done(model)
      raise UserError(f"Stopped at step {step} of {settings.steps}: the same command goes on from there.") from stop
    finally:
      progress.close()
  return model, sum(read_seconds(path) for path in folder.rglob("curves.csv"))


def make_optimizer(settings: ConfigDict) -> keras.optimizers.Optimizer:
  """The optimiser and learning-rate schedule of `settings`."""
  if settings.schedule == "cosine":
    warmup_steps = min(settings.warmup_steps, settings.steps // 10)
    learning_rate = keras.optimizers.schedules.CosineDecay(
      initial_learning_rate=settings.learning_rate / 100,
      warmup_target=settings.learning_rate,
      warmup_steps=warmup_steps,
      decay_steps=max(1, settings.steps - warmup_steps),
      alpha=0.005,
    )
  else:
    learning_rate = settings.learning_rate
  clipnorm = settings.clipnorm or None
  if settings.optimizer in ("muon", "pruning_muon"):
    muon = ConvMuon if settings.optimizer == "muon" else PruningMuon
    return muon(
      learning_rate,
      adam_lr_ratio=settings.adam_lr_ratio,
      adam_beta_2=settings.beta_2,
      weight_decay=0.0,
      adam_weight_decay=0.0,
      global_clipnorm=clipnorm,
    )
  return keras.optimizers.Adam(learning_rate, beta_2=settings.beta_2, global_clipnorm=clipnorm)
