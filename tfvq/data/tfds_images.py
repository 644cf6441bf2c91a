"""Labelled images from TensorFlow Datasets: CIFAR-10, ImageNet."""

import numpy as np
import tensorflow as tf

from tfvq.errors import UserError
from tfvq.extras import extra

# Images are resized before they are shuffled: at 128x128x3 the buffer takes 0.5 GB; decoded images of ImageNet, about
# 0.6 MB each, would take 6 GB.
_SHUFFLE_BUFFER = 10_000


class TfdsImages:
  """Images of a TensorFlow Datasets set, centre-cropped to squares and resized.

  Args:
    name: Name of the data set, such as "cifar10" or "imagenet2012".
    held_out: The set's own split to hold out, such as "test" or "validation".
    image_size: Height and width in pixels.
    data_dir: Folder of the data set; "" for the default of TensorFlow Datasets.
    validation_percent: Percentage of the set's split "train", 0..99, taken from its end as "validation"; 0 for no such
      split.

  Raises:
    UserError: The data set is missing and cannot be downloaded, has no labelled uint8 images, or has no such split.
  """

  def __init__(self, name: str, held_out: str, image_size: int, data_dir: str = "", *, validation_percent: int = 0):
    with extra("data"):
      import tensorflow_datasets as tfds  # takes seconds to import: only where it is used

    try:
      self._builder = tfds.builder(name, data_dir=data_dir or None)
      self._builder.download_and_prepare()
    except Exception as error:  # TFDS raises many kinds of exceptions, from a wrong name to a broken connection
      reason = " ".join(str(error).split())[:200]
      raise UserError(
        f"The data set {name} is not in {data_dir or '~/tensorflow_datasets'} and could not be downloaded: {reason}"
      ) from error
    features, splits = dict(self._builder.info.features), self._builder.info.splits
    image, label = (features.get(key) for key in ("image", "label"))
    if not isinstance(image, tfds.features.Image) or not isinstance(label, tfds.features.ClassLabel):
      raise UserError(f"The data set {name} does not contain labelled images: choose another config.data.name.")
    if image.dtype != tf.uint8:
      raise UserError(
        f"The images of the data set {name} are {image.dtype.name}, not uint8: choose another config.data.name."
      )
    if splits and held_out not in splits:
      raise UserError(f"The data set {name} has no split {held_out!r}: choose one of {', '.join(splits)}.")
    self._splits = {"train": "train", "held_out": held_out}
    if validation_percent:
      end = 100 - validation_percent
      self._splits = {"train": f"train[:{end}%]", "validation": f"train[{end}%:]", "held_out": held_out}
    self._image_size = image_size
    self._num_channels = image.shape[-1]
    self.num_classes = label.num_classes

  @property
  def split_names(self) -> tuple[str, ...]:
    """Names of the splits."""
    return tuple(self._splits)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels)."""
    return (self._image_size, self._image_size, self._num_channels)

  def num_examples(self, split: str) -> int:
    """Examples in a split."""
    return int(self._builder.as_dataset(split=self._splits[split]).cardinality())

  def train(self, batch_size: int, seed: int, start_step: int = 0) -> tf.data.Dataset:
    """Endless shuffled batches; a run resumed at another step continues in another random order."""
    import tensorflow_datasets as tfds

    read_config = tfds.ReadConfig(shuffle_seed=seed + start_step)
    examples = self._builder.as_dataset(split=self._splits["train"], shuffle_files=True, read_config=read_config)
    examples = self._prepared(examples.repeat())
    examples = examples.shuffle(min(_SHUFFLE_BUFFER, self.num_examples("train")), seed=seed + start_step)
    return examples.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)

  def batches(self, split: str, batch_size: int) -> tf.data.Dataset:
    """All examples of a split in order, once; the last batch may be smaller."""
    examples = self._prepared(self._builder.as_dataset(split=self._splits[split]))
    return examples.batch(batch_size).prefetch(tf.data.AUTOTUNE)

  def examples(self, split: str, num: int) -> np.ndarray:
    """The first images of a split, uint8 [num, H, W, C]."""
    return next(iter(self.batches(split, num)))["image"].numpy()

  def _prepared(self, examples):
    return examples.map(self._prepare, num_parallel_calls=tf.data.AUTOTUNE)

  def _prepare(self, example):
    image = example["image"]
    side = tf.minimum(tf.shape(image)[0], tf.shape(image)[1])
    image = tf.image.resize_with_crop_or_pad(image, side, side)
    image = tf.image.resize(image, [self._image_size] * 2, method="area")
    return {"image": tf.cast(tf.round(image), tf.uint8), "label": tf.cast(example["label"], tf.int32)}
