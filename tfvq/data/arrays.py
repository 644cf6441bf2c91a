"""Data sets that fit into memory."""

import numpy as np
import tensorflow as tf

from tfvq.errors import UserError


class ArraySource:
  """Named splits, each a dict of arrays of equal length, as `tf.data` pipelines.

  Args:
    splits: For each split its arrays, such as {"train": {"image": uint8 [N, H, W, C], "label": int32 [N]}}.
    num_classes: Number of values of "label"; 0 if there are no labels.

  Raises:
    UserError: A label is not an integer in 0..num_classes-1.
  """

  def __init__(self, splits: dict[str, dict[str, np.ndarray]], num_classes: int = 0):
    for split, arrays in splits.items():
      if num_classes and "label" in arrays:
        check_range(arrays["label"], num_classes, f"The labels of the split {split!r}")
    self.splits = splits
    self.num_classes = num_classes

  @property
  def split_names(self) -> tuple[str, ...]:
    """Names of the splits."""
    return tuple(self.splits)

  def num_examples(self, split: str) -> int:
    """Examples in a split."""
    return len(next(iter(self.splits[split].values())))

  def train(self, batch_size: int, seed: int, start_step: int = 0) -> tf.data.Dataset:
    """Endless shuffled batches of the split "train", as dicts of tensors.

    Args:
      batch_size: Examples per batch. Every batch is full; where there are fewer examples, it repeats some.
      seed: Seed of the order, which differs between epochs.
      start_step: Number of batches to skip, so that a resumed run continues with the batches that come next.
    """
    arrays = {key: tf.constant(value) for key, value in self.splits["train"].items()}
    order = tf.data.Dataset.range(self.num_examples("train"))
    order = order.shuffle(self.num_examples("train"), seed=seed, reshuffle_each_iteration=True).repeat()
    order = order.batch(batch_size, drop_remainder=True).skip(start_step)
    batches = order.map(lambda index: {key: tf.gather(value, index) for key, value in arrays.items()})
    return batches.prefetch(tf.data.AUTOTUNE)

  def batches(self, split: str, batch_size: int) -> tf.data.Dataset:
    """All examples of a split in order, once, as dicts of tensors; the last batch may be smaller."""
    return tf.data.Dataset.from_tensor_slices(self.splits[split]).batch(batch_size).prefetch(tf.data.AUTOTUNE)


class ClipSource:
  """Named splits of clips of different lengths, as `tf.data` pipelines.

  Args:
    splits: For each split its clips, each a dict of arrays.
    timed: Names of the arrays whose first dimension is time; it is the same for all of a clip.
  """

  def __init__(self, splits: dict[str, list[dict[str, np.ndarray]]], timed: list[str]):
    self.splits = splits
    self.timed = timed

  @property
  def split_names(self) -> tuple[str, ...]:
    """Names of the splits."""
    return tuple(self.splits)

  def num_examples(self, split: str) -> int:
    """Clips in a split."""
    return len(self.splits[split])

  def train(self, batch_size: int, window: int, seed: int, start_step: int = 0) -> tf.data.Dataset:
    """Endless batches of random windows of the split "train", as dicts of tensors.

    Args:
      batch_size: Windows per batch.
      window: Length of a window; every window of the split is equally likely.
      seed: Seed of the draws.
      start_step: The step that the batches begin at; at another step other windows are drawn.

    Raises:
      UserError: No clip is as long as a window.
    """
    clips = self.splits["train"]
    num_windows = [max(0, len(clip[self.timed[0]]) - window + 1) for clip in clips]
    if not sum(num_windows):
      raise UserError(f"No clip is {window} steps long: use shorter windows, or give longer clips.")
    first_windows = np.cumsum(num_windows)
    signature = {
      name: tf.TensorSpec([window, *value.shape[1:]] if name in self.timed else value.shape, value.dtype)
      for name, value in clips[0].items()
    }

    def windows():
      rng = np.random.default_rng([seed, start_step])
      while True:
        drawn = rng.integers(first_windows[-1])
        index = int(np.searchsorted(first_windows, drawn, side="right"))
        start = int(drawn - first_windows[index] + num_windows[index])
        yield {
          name: value[start : start + window] if name in self.timed else value for name, value in clips[index].items()
        }

    batches = tf.data.Dataset.from_generator(windows, output_signature=signature).batch(batch_size)
    return batches.prefetch(tf.data.AUTOTUNE)

  def clips(self, split: str) -> list[dict[str, np.ndarray]]:
    """The clips of a split in order."""
    return self.splits[split]


def check_range(values: np.ndarray, num_values, what: str, advice: str = "") -> None:
  """Checks that values are integers in 0..num_values-1.

  Args:
    values: Array of any shape; an empty one passes.
    num_values: Number of allowed values, an integer or an array of integers that broadcasts to the values.
    what: Subject of the error, such as "The codes of the split 'train'".
    advice: What the user should do, if the error does not say it by itself.

  Raises:
    UserError: They are not integers, or out of range.
  """
  end = f": {advice}." if advice else "."
  if not np.issubdtype(values.dtype, np.integer):
    raise UserError(f"{what} are {values.dtype}; they must be integers{end}")
  if values.size and (values.min() < 0 or np.any(values >= np.asarray(num_values))):
    raise UserError(
      f"{what} range from {values.min()} to {values.max()}; they must lie in 0..{np.max(num_values) - 1}{end}"
    )
