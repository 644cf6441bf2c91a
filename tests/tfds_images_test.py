import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfvq.data.tfds_images import TfdsImages
from tfvq.errors import UserError


def test_tfds_images_are_cropped_resized_and_labelled():
  with tfds.testing.mock_data(num_examples=5):
    source = TfdsImages("imagenet2012", "validation", 16)
    assert source.image_shape == (16, 16, 3) and source.num_classes == 1000
    assert source.num_examples("held_out") == 5
    batches = list(source.batches("held_out", 2))
    assert [batch["image"].shape[0] for batch in batches] == [2, 2, 1]
    batch = next(iter(source.train(3, seed=0)))
    assert batch["image"].shape == (3, 16, 16, 3) and batch["image"].dtype == tf.uint8
    assert batch["label"].shape == (3,) and batch["label"].dtype == tf.int32
    assert source.examples("train", 2).shape == (2, 16, 16, 3)
    grey = TfdsImages("mnist", "test", 16)
    assert grey.image_shape == grey.examples("train", 1).shape[1:] == (16, 16, 1)
    with pytest.raises(UserError, match="vctk does not contain labelled images"):
      TfdsImages("vctk", "test", 16)


@pytest.fixture
def numbered_images(tmp_path):
  """A TFDS data set with 40 images of 24x32 in "train" and 5 in "test"; all values of an image are its number."""
  features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(num_classes=7)}

  def examples(numbers):
    return [(number, {"image": np.full([24, 32, 3], number, np.uint8), "label": number % 7}) for number in numbers]

  tfds.dataset_builders.store_as_tfds_dataset(
    name="numbered",
    version="1.0.0",
    features=tfds.features.FeaturesDict(features),
    split_datasets={"train": examples(range(40)), "test": examples(range(40, 45))},
    data_dir=tmp_path,
  )
  return "numbered", "test", 8, str(tmp_path)


def numbers_in(batches):
  return np.concatenate([batch["image"].numpy()[:, 0, 0, 0] for batch in batches])


def test_validation_split_is_end_of_training_split(numbered_images):
  source = TfdsImages(*numbered_images, validation_percent=20)
  assert source.split_names == ("train", "validation", "held_out")
  found = {split: list(numbers_in(source.batches(split, 3))) for split in source.split_names}
  assert [len(found[split]) for split in found] == [source.num_examples(split) for split in found] == [32, 8, 5]
  assert sorted(found["train"] + found["validation"]) == list(range(40))
  assert sorted(set(numbers_in(source.train(8, seed=0).take(20)))) == sorted(found["train"])
  whole = TfdsImages(*numbered_images)
  assert whole.split_names == ("train", "held_out")
  assert list(numbers_in(whole.batches("train", 3))) == found["train"] + found["validation"]


def test_images_are_resized_before_they_are_shuffled(numbered_images, monkeypatch):
  """The shuffle buffer contains thousands of images, so they must have 8x8 pixels, not their original size."""
  shuffle, shuffled = tf.data.Dataset.shuffle, []

  def spy(dataset, *args, **kwargs):
    shuffled.append(dataset.element_spec)
    return shuffle(dataset, *args, **kwargs)

  monkeypatch.setattr(tf.data.Dataset, "shuffle", spy)
  source = TfdsImages(*numbered_images)
  orders = [numbers_in(source.train(8, seed=seed).take(10)) for seed in (1, 1, 2)]
  images = [spec["image"] for spec in shuffled if isinstance(spec, dict)]
  assert images and all(image.shape == (8, 8, 3) and image.dtype == tf.uint8 for image in images)
  np.testing.assert_array_equal(orders[0], orders[1])
  assert not np.array_equal(orders[0], orders[2])
  np.testing.assert_array_equal(np.bincount(np.concatenate(orders), minlength=40) > 0, np.ones(40, bool))


def test_images_that_are_not_uint8_are_rejected(tmp_path):
  features = {
    "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16),
    "label": tfds.features.ClassLabel(num_classes=2),
  }
  examples = [(0, {"image": np.zeros([8, 8, 1], np.uint16), "label": 0})]
  tfds.dataset_builders.store_as_tfds_dataset(
    name="deep",
    version="1.0.0",
    features=tfds.features.FeaturesDict(features),
    split_datasets={"train": examples, "test": examples},
    data_dir=tmp_path,
  )
  with pytest.raises(UserError, match="images of the data set deep are uint16, not uint8"):
    TfdsImages("deep", "test", 8, str(tmp_path))


def test_data_set_that_cannot_be_downloaded_is_reported(tmp_path):
  with pytest.raises(UserError, match="data set nonesuch is not in"):
    TfdsImages("nonesuch", "test", 16, str(tmp_path))
