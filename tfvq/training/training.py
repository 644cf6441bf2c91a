"""One way to train every model: resumption, callbacks, errors."""

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
    batches: Endless batches for the `fit` of a given model, of a given size, from a given step on.
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
    examples = batches(model, settings.batch_size, step)
    try:
      with matmul_precision(tf.bfloat16 if settings.bfloat16_products else None):
        model.fit(examples, steps_per_epoch=settings.steps - step, callbacks=callbacks, verbose=0, shuffle=False)
    except KeyboardInterrupt as stop:
      if checkpoint.model:  # training had begun
        checkpoint.save()
      step = steps_done(model)
      raise UserError(f"Stopped at step {step} of {settings.steps}: the same command goes on from there.") from stop
    finally:
      progress.close()
  return model, sum(read_seconds(path) for path in folder.rglob("curves.csv"))
