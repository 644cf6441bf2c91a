"""Labelled images from TensorFlow Datasets: CIFAR-10, ImageNet."""

import numpy as np
import tensorflow as tf

from tfvq.errors import UserError
from tfvq.extras import extra

_SHUFFLE_BUFFER = 10_000


class TfdsImages:
  """A TensorFlow Datasets image set, its images cropped to the middle square and resized.

  Args:
    name: Name of the data set, such as "cifar10" or "imagenet2012".
    held_out: The set's own split to hold out, such as "test" or "validation".
    image_size: Height and width in pixels.
    data_dir: Where the data set is kept; "" for the default of TensorFlow Datasets.

  Raises:
    UserError: The data set is not there and cannot be fetched, holds no labelled images, or has no such split.
  """

  split_names = ("train", "held_out")

  def __init__(self, name: str, held_out: str, image_size: int, data_dir: str = ""):
    with extra("data"):
      import tensorflow_datasets as tfds  # takes seconds to import: only where it is used

    try:
      self._builder = tfds.builder(name, data_dir=data_dir or None)
      self._builder.download_and_prepare()
    except Exception as error:  # TFDS raises many kinds, from a wrong name to a broken connection
      reason = " ".join(str(error).split())[:200]
      raise UserError(
        f"The data set {name} is not in {data_dir or '~/tensorflow_datasets'} and could not be fetched: {reason}"
      ) from error
    features, splits = self._builder.info.features, self._builder.info.splits
    if "image" not in features or "label" not in features:
      raise UserError(f"The data set {name} does not hold labelled images: choose another config.data.name.")
    if splits and held_out not in splits:
      raise UserError(f"The data set {name} has no split {held_out!r}: choose of {', '.join(splits)}.")
    self._splits = {"train": "train", "held_out": held_out}
    self._image_size = image_size
    self._num_channels = features["image"].shape[-1]
    self.num_classes = features["label"].num_classes

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels)."""
    return (self._image_size, self._image_size, self._num_channels)

  def num_examples(self, split: str) -> int:
    """Examples in a split."""
    return int(self._builder.as_dataset(split=self._splits[split]).cardinality())

  def train(self, batch_size: int, seed: int, start_step: int = 0) -> tf.data.Dataset:
    """Shuffled batches without end; a run resumed at another step goes on in another random order."""
    import tensorflow_datasets as tfds

    read_config = tfds.ReadConfig(shuffle_seed=seed + start_step)
    examples = self._builder.as_dataset(split="train", shuffle_files=True, read_config=read_config).repeat()
    examples = examples.shuffle(min(_SHUFFLE_BUFFER, self.num_examples("train")), seed=seed + start_step)
    return self._batched(examples, batch_size, drop_remainder=True)

  def batches(self, split: str, batch_size: int) -> tf.data.Dataset:
    """All examples of a split in order, once; the last batch may be smaller."""
    return self._batched(self._builder.as_dataset(split=self._splits[split]), batch_size, drop_remainder=False)

  def examples(self, split: str, num: int) -> np.ndarray:
    """The first images of a split, uint8 [num, H, W, C]."""
    return next(iter(self.batches(split, num)))["image"].numpy()

  def _batched(self, examples, batch_size, drop_remainder):
    examples = examples.map(self._prepare, num_parallel_calls=tf.data.AUTOTUNE)
    return examples.batch(batch_size, drop_remainder=drop_remainder).prefetch(tf.data.AUTOTUNE)

  def _prepare(self, example):
    image = example["image"]
    side = tf.minimum(tf.shape(image)[0], tf.shape(image)[1])
    image = tf.image.resize_with_crop_or_pad(image, side, side)
    image = tf.image.resize(image, [self._image_size] * 2, method="area")
    return {"image": tf.cast(tf.round(image), tf.uint8), "label": tf.cast(example["label"], tf.int32)}
