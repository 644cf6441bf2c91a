"""Data sets that fit into memory."""

import numpy as np
import tensorflow as tf


class ArraySource:
  """Named splits, each a dict of arrays of equal length, as `tf.data` pipelines.

  Args:
    splits: For each split its arrays, such as {"train": {"image": uint8 [N, H, W, C], "label": int32 [N]}}.
    num_classes: Number of values of "label"; 0 if there are no labels.
  """

  def __init__(self, splits: dict[str, dict[str, np.ndarray]], num_classes: int = 0):
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
    """Shuffled batches of the split "train" without end, as dicts of tensors.

    Args:
      batch_size: Examples per batch; always full.
      seed: Seed of the order, each epoch's another one.
      start_step: Batches to leave out at the start, so that a resumed run sees what it would have seen.
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
