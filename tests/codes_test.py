import json

import numpy as np
import pytest

from tfvq.data.arrays import ClipSource
from tfvq.data.codes import read_codes, read_manifest, write_codes
from tfvq.errors import UserError
from tfvq.files import write_json


def write_some_codes(folder, rng, **changes):
  splits = {
    "train": {"codes": rng.integers(0, 300, (5000, 3, 2)), "label": rng.integers(0, 4, 5000).astype(np.int32)},
    "held_out": {"codes": rng.integers(0, 300, (7, 3, 2)), "label": rng.integers(0, 4, 7).astype(np.int32)},
  }
  write_codes(folder, splits, **{"num_values": {"codes": 300, "label": 4}, "autoencoder_sha256": "abc", **changes})
  return splits


def test_codes_come_back_as_written(tmp_path, rng):
  splits = write_some_codes(tmp_path, rng)
  manifest = read_manifest(tmp_path, "abc")
  assert manifest["features"] == {
    "codes": {"dtype": "<u2", "shape": [3, 2], "num_values": 300},
    "label": {"dtype": "<i4", "shape": [], "num_values": 4},
  }
  source = read_codes(tmp_path, manifest)
  for split, arrays in splits.items():
    for key, value in arrays.items():
      np.testing.assert_array_equal(source.splits[split][key], value)


@pytest.mark.parametrize(
  ("arrays", "sentence"),
  [
    ({"codes": [[0, 5]]}, r"'codes' in the split 'train' range from 0 to 5; they must lie in 0\.\.4"),
    ({"codes": [[-1, 4]]}, r"'codes' in the split 'train' range from -1 to 4; they must lie in 0\.\.4"),
    ({"codes": [[0.0, 1.0]]}, "'codes' in the split 'train' are float64; they must be integers"),
    ({"codes": [[True, False]]}, "'codes' in the split 'train' are bool; they must be integers"),
    ({"codes": [[0, 4]], "label": [3]}, r"'label' in the split 'train' range from 3 to 3; they must lie in 0\.\.2"),
    ({"codes": [[0, 4]], "label": [-1]}, r"'label' in the split 'train' range from -1 to -1; they must lie in 0\.\.2"),
  ],
)
def test_codes_and_labels_out_of_range_are_not_written(arrays, sentence, tmp_path):
  splits = {"train": {key: np.array(value) for key, value in arrays.items()}}
  with pytest.raises(UserError, match=sentence):
    write_codes(tmp_path, splits, num_values={"codes": 5, "label": 3}, autoencoder_sha256="abc")
  assert not list(tmp_path.iterdir())


def test_more_codes_than_a_file_can_hold_are_refused(tmp_path, rng):
  with pytest.raises(UserError, match="The codes have 65537 values; at most 65536 can be stored"):
    write_some_codes(tmp_path, rng, num_values={"codes": 65_537})


@pytest.mark.parametrize(("field", "value"), [("codes", 299), ("label", 3)])
def test_codes_and_labels_out_of_range_are_not_read(field, value, tmp_path, rng):
  write_some_codes(tmp_path, rng)
  manifest = read_manifest(tmp_path)
  manifest["features"][field]["num_values"] = value
  sentence = rf"'{field}' in .*train-00000.tfrecord range from 0 to {value}; they must lie in 0\.\.{value - 1}: delete "
  with pytest.raises(UserError, match=sentence):
    read_codes(tmp_path, manifest)


def test_clips_with_conditions_come_back_as_written(tmp_path, rng):
  """Codes with a K for each position, and conditions of several shapes and dtypes."""
  lengths = (7, 30, 12)
  num_values = np.array([4, 9])
  clips = {
    "codes": [rng.integers(0, num_values, (length, 2)) for length in lengths],
    "action": [rng.normal(size=(length, 3)).astype(np.float32) for length in lengths],
    "phones": [rng.integers(0, 41, length).astype(np.int32) for length in lengths],
    "speaker": np.array([1, 0, 1], np.int32),
  }
  write_codes(
    tmp_path,
    {"train": clips, "held_out": clips},
    num_values={"codes": num_values, "phones": 41, "speaker": 2},
    autoencoder_sha256="abc",
  )
  manifest = read_manifest(tmp_path)
  assert manifest["features"]["codes"] == {"dtype": "<u2", "shape": [None, 2], "num_values": [4, 9]}
  source = read_codes(tmp_path, manifest)
  for index, clip in enumerate(source.clips("held_out")):
    assert clip.keys() == clips.keys()
    for name, value in clip.items():
      np.testing.assert_array_equal(value, clips[name][index])
  manifest["features"]["codes"]["num_values"] = [4, 8]
  with pytest.raises(UserError, match="'codes' in .* range from 0 to 8"):
    read_codes(tmp_path, manifest)


def test_every_window_of_the_clips_is_equally_likely():
  lengths = (7, 30, 12)
  clips = [
    {"codes": 100 * index + np.arange(length), "speaker": np.int32(index)} for index, length in enumerate(lengths)
  ]
  source = ClipSource({"train": clips}, ["codes"])
  batch = next(iter(source.train(4000, 10, seed=0)))
  codes, speakers = batch["codes"].numpy(), batch["speaker"].numpy()
  np.testing.assert_array_equal(codes, codes[:, :1] + np.arange(10))
  np.testing.assert_array_equal(codes[:, 0] // 100, speakers)
  starts, counts = np.unique(codes[:, 0], return_counts=True)
  np.testing.assert_array_equal(starts, [*range(100, 121), *range(200, 203)])  # the first clip is too short
  assert counts.min() > 4000 / 24 / 2 and counts.max() < 2 * 4000 / 24
  other = next(iter(source.train(4000, 10, seed=0, start_step=1)))
  assert np.any(other["codes"] != codes)
  with pytest.raises(UserError, match="No clip is 31 steps long"):
    source.train(1, 31, seed=0)


@pytest.mark.parametrize("damage", ["cut", "altered", "missing"])
def test_damaged_codes_are_refused(damage, tmp_path, rng):
  write_some_codes(tmp_path, rng)
  shard = tmp_path / "train-00001.tfrecord"
  content = bytearray(shard.read_bytes())
  if damage == "cut":
    shard.write_bytes(content[:-5])
  elif damage == "altered":
    content[40] ^= 1
    shard.write_bytes(content)
  else:
    shard.unlink()
  with pytest.raises(UserError, match="train-00001.tfrecord"):
    read_codes(tmp_path, read_manifest(tmp_path))


def test_codes_of_another_model_or_none_are_refused(tmp_path, rng):
  with pytest.raises(UserError, match="no codes"):
    read_manifest(tmp_path)
  write_some_codes(tmp_path, rng)
  with pytest.raises(UserError, match="another autoencoder"):
    read_manifest(tmp_path, "another")
  manifest = json.loads((tmp_path / "manifest.json").read_text())
  write_json(tmp_path / "manifest.json", {**manifest, "version": 99})
  with pytest.raises(UserError, match="version 99"):
    read_manifest(tmp_path)
