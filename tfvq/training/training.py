"""The training loop of all models, with resumption, callbacks and errors."""

import pathlib
from collections.abc import Callable

import keras
import tensorflow as tf
from ml_collections import ConfigDict

import tfvq.models  # noqa: F401  Keras loads a model whose classes are imported
from tfvq.errors import UserError
from tfvq.ops.matmul import matmul_precision
from tfvq.training.callbacks import Checkpoint, Curves, ProgressBar, TerminateOnNonFiniteLoss, read_seconds, steps_done
from tfvq.training.loading import load_weights
from tfvq.training.optimizers import make_optimizer
from tfvq.training.strategy import check_batch_size


def train(
  build_model: Callable[[], keras.Model],
  batches: Callable[[keras.Model, int, int], tf.data.Dataset],
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
    batches: Function from a model, a batch size and a step to endless batches for its `fit` from that step on.
    settings: See `tfvq.configs.common.training`.
    folder: Folder for `checkpoint.keras` and `curves.csv`.
    title: Name of the model in the progress bar.
    strategy: Distribution strategy.
    prepare: Function that prepares the model before its first step, such as by fitting its codebook to data. It is not
      called if there are initial weights. Its second argument, `train_part(name, part, settings, prepare)`, trains a
      part of the model in the same way, in a folder of its own.
    extra_callbacks: Function from the model to callbacks, which are called before those of this function.

  Returns:
    The trained model, and the seconds spent training, including its parts and interrupted runs.

  Raises:
    UserError: The number of replicas does not divide the batch size, the loss is not finite, or a file cannot be
      written.
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
    examples = batches(model, settings.batch_size, step)
    try:
      with matmul_precision(tf.bfloat16 if settings.bfloat16_products else None):
        model.fit(examples, steps_per_epoch=settings.steps - step, callbacks=callbacks, verbose=0, shuffle=False)
    except KeyboardInterrupt as stop:
      if checkpoint.model:  # training had begun
        checkpoint.save()
      step = steps_done(model)
      raise UserError(f"Stopped at step {step} of {settings.steps}: give the same command again to continue.") from stop
    finally:
      progress.close()
  return model, sum(read_seconds(path) for path in folder.rglob("curves.csv"))
