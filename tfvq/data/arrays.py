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


def check_range(values: np.ndarray, num_values: int, what: str, advice: str = "") -> None:
  """Checks that values are integers in 0..num_values-1.

  Args:
    values: Array of any shape; an empty one passes.
    num_values: Number of allowed values.
    what: Subject of the error, such as "The codes of the split 'train'".
    advice: What the user should do, if the error does not say it by itself.

  Raises:
    UserError: They are not.
  """
  end = f": {advice}." if advice else "."
  if not np.issubdtype(values.dtype, np.integer):
    raise UserError(f"{what} are {values.dtype}; they must be integers{end}")
  if values.size and not 0 <= values.min() <= values.max() < num_values:
    raise UserError(f"{what} range from {values.min()} to {values.max()}; they must lie in 0..{num_values - 1}{end}")
