"""What happens beside the training steps: checkpoints, curves, a progress bar, and a stop where the loss is lost."""

import csv
import time

import keras
import numpy as np
import tqdm

from tfvq.errors import UserError
from tfvq.files import atomic_write


def steps_done(model: keras.Model) -> int:
  """Steps that the model's optimiser has made."""
  return int(np.array(model.optimizer.iterations))  # int() alone fails on the variables of a mirrored strategy


class Checkpoint(keras.callbacks.Callback):
  """Saves model and optimiser as one `.keras` file every so often, whole or not at all, and at the end.

  Args:
    path: The file; each checkpoint takes the place of the one before.
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
  """Writes the metrics over every so many steps to a CSV file: step, seconds spent training so far, and the metrics.

  A metric without data leaves its field empty.

  Args:
    path: The file. Rows of steps after the one that training starts at are dropped: they will come again.
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
    # Not the logs, which are those of one step: they cannot leave out metrics without data, and replicas differ.
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
  """Shows steps, speed, time left and the latest metrics on one line.

  Args:
    title: What is being trained.
    num_steps: Steps in all, those of earlier runs included.
    curves: Where the metrics come from.
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
    """Ends the line, so that what is printed next stands on a line of its own."""
    if self._bar is not None:
      self._bar.close()


class StopAtLostLoss(keras.callbacks.Callback):
  """Ends training with a clear sentence when the loss is no longer finite; put it before `Checkpoint`.

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
