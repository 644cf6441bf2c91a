"""Callbacks of training: checkpoints, curves, a progress bar, and termination if the loss is not finite."""

import csv
import time

import keras
import numpy as np
import tqdm

from tfvq.errors import UserError
from tfvq.files import atomic_write


def steps_done(model: keras.Model) -> int:
  """Number of steps that the model's optimiser has done."""
  return int(np.array(model.optimizer.iterations))  # int() alone fails on the variables of a mirrored strategy


class Checkpoint(keras.callbacks.Callback):
  """Saves model and optimiser in one `.keras` file, atomically, at intervals and at the end.

  Args:
    path: The file; each checkpoint replaces the previous one.
    seconds: Time between two checkpoints.
  """

  def __init__(self, path, seconds: float):
    super().__init__()
    self.path = path
    self.seconds = seconds
    self._saved_at = time.monotonic()

  def on_train_batch_end(self, batch, logs=None):
    if time.monotonic() - self._saved_at >= self.seconds:
      self.save()

  def on_train_end(self, logs=None):
    self.save()

  def save(self) -> None:
    """Saves now."""
    with atomic_write(self.path) as temporary:
      self.model.save(temporary)
    self._saved_at = time.monotonic()


class Curves(keras.callbacks.Callback):
  """Writes metrics over intervals of steps to a CSV file: step, seconds of training so far, and the metrics.

  The field of a metric without data is empty.

  Args:
    path: The file. Rows after the step at which training starts are dropped, because they will be written again.
    every_steps: Steps between two rows; the metrics are reset after each.
  """

  def __init__(self, path, every_steps: int):
    super().__init__()
    self.path = path
    self.every_steps = every_steps
    self.rows = []

  def on_train_begin(self, logs=None):
    step = steps_done(self.model)
    self.rows = [row for row in read_curves(self.path) if row["step"] <= step]
    self._seconds_before = self.rows[-1]["seconds"] if self.rows else 0.0
    self._began_at = time.monotonic()

  @property
  def seconds(self) -> float:
    """Seconds spent training, interrupted runs included."""
    return round(self._seconds_before + time.monotonic() - self._began_at, 2)

  def on_train_batch_end(self, batch, logs=None):
    if steps_done(self.model) % self.every_steps == 0:
      self._write_row()
      self.model.reset_metrics()

  def on_train_end(self, logs=None):
    if not self.rows or self.rows[-1]["step"] < steps_done(self.model):
      self._write_row()

  def _write_row(self):
    # The logs would be those of one step, with metrics that have no data, and different on each replica.
    metrics = {name: float(value) for name, value in self.model.get_metrics_result().items()}
    self.rows.append({"step": steps_done(self.model), "seconds": self.seconds, **metrics})
    names = dict.fromkeys(name for row in self.rows for name in row)
    with atomic_write(self.path) as temporary, open(temporary, "w", newline="") as file:
      writer = csv.DictWriter(file, names)
      writer.writeheader()
      writer.writerows(self.rows)


def read_curves(path) -> list[dict[str, float]]:
  """Rows of a file that `Curves` wrote, oldest first; none if there is no such file.

  A metric without data is absent from a row.
  """
  if not path.exists():
    return []
  with open(path, newline="") as file:
    return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def read_seconds(path) -> float:
  """Seconds of training in a file that `Curves` wrote; 0 if there is no such file."""
  rows = read_curves(path)
  return rows[-1]["seconds"] if rows else 0.0


class ProgressBar(keras.callbacks.Callback):
  """Shows the step, the speed, the time left and the latest metrics on one line.

  Args:
    title: Name of what is trained.
    num_steps: Total number of steps, including those of earlier runs.
    curves: Source of the metrics.
  """

  def __init__(self, title: str, num_steps: int, curves: Curves):
    super().__init__()
    self.curves = curves
    self.title = title
    self.num_steps = num_steps
    self._bar = None

  def on_train_begin(self, logs=None):
    done = steps_done(self.model)
    self._bar = tqdm.tqdm(total=self.num_steps, initial=done, desc=self.title, unit="step", dynamic_ncols=True)

  def on_train_batch_end(self, batch, logs=None):
    self._bar.update(steps_done(self.model) - self._bar.n)
    if self.curves.rows:
      latest = {name: f"{value:.4g}" for name, value in self.curves.rows[-1].items() if name not in ("step", "seconds")}
      self._bar.set_postfix(latest, refresh=False)

  def close(self) -> None:
    """Ends the line, so that later output starts on a new one."""
    if self._bar is not None:
      self._bar.close()


class TerminateOnNonFiniteLoss(keras.callbacks.Callback):
  """Stops training with a `UserError` if the loss is not finite; must come before `Checkpoint`.

  Args:
    checkpoint_path: The file of the last good checkpoint.
  """

  def __init__(self, checkpoint_path):
    super().__init__()
    self.checkpoint_path = checkpoint_path

  def on_train_batch_end(self, batch, logs=None):
    if not np.isfinite(float(logs["loss"])):
      step = steps_done(self.model)
      learning_rate = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
      kept = (
        f"the last good checkpoint is {self.checkpoint_path}"
        if self.checkpoint_path.exists()
        else "no checkpoint had been written yet"
      )
      raise UserError(
        f"The loss is {float(logs['loss'])} at step {step}, learning rate {learning_rate:.3g}; {kept}; "
        f"lower the learning rate and start in a new workdir."
      )
