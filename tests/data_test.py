import errno
import json
import os

import numpy as np
import pytest
from PIL import Image

from tests.tiny import config_of, tiny
from tfvq.data import photos, vizdoom
from tfvq.data.arrays import ArraySource, ClipSource
from tfvq.data.codes import read_codes, read_manifest, write_codes
from tfvq.data.debian import unpacked
from tfvq.data.image_sources import ImageArrays, open_image_source
from tfvq.errors import UserError
from tfvq.files import atomic_write, read_json, write_json


def collect(**changes):
  arguments = {"num_episodes": 2, "frames_per_episode": 6, "tics_per_frame": 14, "image_size": 24, "seed": 3}
  return vizdoom.collect("my_way_home", **{**arguments, **changes})


@pytest.fixture(scope="module")
def frames():
  return collect()


def test_collect_returns_requested_frames(frames):
  assert frames["image"].shape == (12, 24, 24, 3) and frames["image"].dtype == np.uint8
  assert frames["image"].std() > 5
  np.testing.assert_array_equal(frames["episode"], [0] * 6 + [1] * 6)
  np.testing.assert_array_equal(frames["tic"], list(range(0, 84, 14)) * 2)
  assert set(frames["action"]) <= set(range(len(vizdoom.ACTIONS)))


def test_frames_depend_only_on_seed(frames):
  again = collect(num_processes=1)
  for key, value in frames.items():
    np.testing.assert_array_equal(again[key], value)
  assert not np.array_equal(collect(seed=4)["image"], frames["image"])


def test_view_turns_with_recorded_actions():
  """A turn to the left shifts the view to the right, so each action belongs to its frame."""
  frames = collect(num_episodes=1, frames_per_episode=100, tics_per_frame=7, image_size=48)
  grey = frames["image"].mean(axis=-1)[:, 10:40]  # without the floor and the ceiling
  shifts = np.array([shift_of(before, after) for before, after in zip(grey[:-1], grey[1:], strict=True)])
  of_action = {name: shifts[frames["action"][:-1] == index] for index, (name, _) in enumerate(vizdoom.ACTIONS)}
  assert np.mean(of_action["left"] > 5) > 0.8
  assert np.mean(of_action["right"] < -5) > 0.8
  assert abs(np.median(of_action["forward"])) < 5


def shift_of(before, after, most=12):
  """The shift to the right, in -12..12 columns, that best matches two images [H, W]."""
  width = before.shape[1]
  errors = {
    shift: np.abs(
      before[:, max(0, -shift) : width - max(0, shift)] - after[:, max(0, shift) : width + min(0, shift)]
    ).mean()
    for shift in range(-most, most + 1)
  }
  return min(errors, key=errors.get)


def test_splits_have_distinct_episodes_and_fixed_seeds(tmp_path):
  """Training and held-out frames are the same with and without a validation split, so that results are comparable."""
  data = config_of("frames").data
  data.update({"image_size": 24, "num_train_episodes": 2, "num_validation_episodes": 1, "num_held_out_episodes": 1})
  data.update({"train_frames_per_episode": 2, "held_out_frames_per_episode": 3})
  source = open_image_source(data, tmp_path / "new", seed=5)
  assert source.split_names == ("train", "validation", "held_out", "unseen_map")
  for split, scenario, seed in (
    ("train", "my_way_home", 50_000_000),
    ("held_out", "my_way_home", 51_000_000),
    ("unseen_map", "deathmatch", 52_000_000),
    ("validation", "my_way_home", 53_000_000),
  ):
    sizes = {"num_episodes": 2, "frames_per_episode": 2, "tics_per_frame": 7}
    if split != "train":
      sizes = {"num_episodes": 1, "frames_per_episode": 3, "tics_per_frame": 35}
    expected = vizdoom.collect(scenario, **sizes, image_size=24, seed=seed)
    np.testing.assert_array_equal(source.splits[split]["image"], expected["image"])


@pytest.mark.parametrize("name", ["frames", "pixelcnn"])
def test_run_without_validation_split_opens(name, tmp_path):
  data = tiny(name).data
  del data.num_validation_episodes
  splits = ("train", "held_out", "unseen_map") if name == "frames" else ("train", "held_out")
  for split in splits:
    np.savez(tmp_path / f"{split}.npz", image=np.zeros([1, 8, 8, 3], np.uint8), label=np.zeros(1, np.int32))
  assert open_image_source(data, tmp_path, seed=0).split_names == splits


def test_unknown_scenario_and_invalid_spacing_are_rejected():
  with pytest.raises(UserError, match="my_way_home"):
    vizdoom.collect("nowhere", num_episodes=1, frames_per_episode=1, tics_per_frame=7, image_size=8, seed=0)
  with pytest.raises(UserError, match="multiple of 7"):
    collect(tics_per_frame=10)


def test_collect_leaves_no_file_in_current_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  collect(num_episodes=1, frames_per_episode=1)
  assert list(tmp_path.iterdir()) == []


def test_training_batches_continue_where_a_resumed_run_starts(rng):
  source = ArraySource({"train": {"x": np.arange(10), "y": 2 * np.arange(10)}})
  whole = [batch["x"].numpy() for batch in source.train(4, seed=1).take(12)]
  resumed = [batch["x"].numpy() for batch in source.train(4, seed=1, start_step=5).take(7)]
  np.testing.assert_array_equal(whole[5:], resumed)
  np.testing.assert_array_equal(np.sort(np.concatenate(whole)[:40].reshape(4, 10)), np.tile(np.arange(10), (4, 1)))
  batch = next(iter(source.train(4, seed=1)))
  np.testing.assert_array_equal(batch["y"], 2 * batch["x"])


@pytest.mark.parametrize("num_examples", [1, 3])
def test_batches_are_full_where_there_are_fewer_examples_than_a_batch(num_examples):
  source = ArraySource({"train": {"x": np.arange(num_examples)}})
  batches = [batch["x"].numpy() for batch in source.train(4, seed=1).take(3)]
  np.testing.assert_array_equal(np.bincount(np.concatenate(batches)), [12 // num_examples] * num_examples)


def test_images_and_labels_that_no_model_can_take_are_refused(rng):
  images = rng.integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
  for wrong in (images / 255, images.astype(np.float32), images.astype(np.int64), images[0]):
    with pytest.raises(UserError, match=r"images of the split 'held_out' are .*convert them to uint8"):
      ImageArrays({"train": {"image": images}, "held_out": {"image": wrong}})
  for labels in ([0, 1, 2, 3], [-1, 0, 1, 2]):
    with pytest.raises(UserError, match=r"labels of the split 'train' range from .*; they must lie in 0\.\.2"):
      ImageArrays({"train": {"image": images, "label": np.array(labels, np.int32)}}, num_classes=3)


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


def test_windows_of_clips_are_drawn_from_everywhere_alike():
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


def test_atomic_write_writes_all_or_nothing(tmp_path):
  path = tmp_path / "folder" / "value.json"
  write_json(path, {"a": 1})
  with pytest.raises(RuntimeError), atomic_write(path) as temporary:
    temporary.write_text("half")
    raise RuntimeError
  assert read_json(path) == {"a": 1}
  assert [file.name for file in path.parent.iterdir()] == ["value.json"]


def test_full_disk_is_reported_and_keeps_old_file(tmp_path):
  path = tmp_path / "value.json"
  write_json(path, {"a": 1})
  with pytest.raises(UserError, match="No space left"), atomic_write(path) as temporary:
    temporary.write_text("half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write to a full disk does
  assert read_json(path) == {"a": 1}


def test_folder_that_cannot_be_created_is_reported(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="could not be written"):
    write_json(tmp_path / "file" / "value.json", {})


def test_invalid_json_is_reported(tmp_path):
  (tmp_path / "value.json").write_text("{")
  with pytest.raises(UserError, match="not valid JSON"):
    read_json(tmp_path / "value.json")


@pytest.fixture
def pictures(tmp_path, rng):
  folder = tmp_path / "pictures"
  for index in range(30):
    path = folder / ("nested" if index % 2 else "") / f"{index}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    # The photograph's number is in its red channel, so that each tile shows where it came from.
    pixels = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    pixels[..., 0] = index
    Image.fromarray(pixels).save(path)
  return folder


def test_tiles_are_split_by_photograph(pictures):
  splits = photos.tiles(photos.find_photos(pictures), tile_size=16, shorter_side=100)
  origins = {split: set(np.unique(arrays["image"][..., 0])) for split, arrays in splits.items()}
  assert origins["train"] | origins["held_out"] == set(range(30))
  assert not origins["train"] & origins["held_out"]
  assert len(splits["train"]["image"]) == 6 * len(origins["train"])


def test_validation_photographs_come_from_training_split(pictures):
  found = photos.find_photos(pictures)
  with_none, with_some = (
    {
      split: set(np.unique(arrays["image"][..., 0]))
      for split, arrays in photos.tiles(found, 16, 100, validation_percent=percent).items()
    }
    for percent in (0, 20)
  )
  assert with_some["held_out"] == with_none["held_out"]
  assert with_some["validation"] and not with_some["validation"] & with_some["train"]
  assert with_some["validation"] | with_some["train"] == with_none["train"]


def test_flat_tiles_are_left_out_and_large_photographs_downscaled(pictures):
  splits = photos.tiles(photos.find_photos(pictures), tile_size=16, shorter_side=16)
  assert splits["train"]["image"].shape[1:] == (16, 16, 3)
  for path in photos.find_photos(pictures):
    Image.new("RGB", (40, 50), "grey").save(path)
  with pytest.raises(UserError, match="no 16x16 tile"):
    photos.tiles(photos.find_photos(pictures), tile_size=16, shorter_side=100)


def test_broken_pictures_are_skipped_and_named(pictures, capsys):
  (pictures / "0.png").write_bytes(b"no picture")
  (pictures / "2.png").write_bytes((pictures / "2.png").read_bytes()[:500])
  photos.tiles(photos.find_photos(pictures), tile_size=16, shorter_side=100)
  assert "left out 2 of 30 pictures that could not be read: 0.png, 2.png" in capsys.readouterr().out


def test_wallpaper_in_many_sizes_is_listed_once(tmp_path, rng):
  folder = tmp_path / "Wallpaper" / "contents" / "images"
  folder.mkdir(parents=True)
  for size in (20, 40, 30):
    Image.fromarray(rng.integers(0, 256, (size, size, 3)).astype(np.uint8)).save(folder / f"{size}x{size}.png")
  assert photos.find_photos(tmp_path) == [folder / "40x40.png"]


def test_all_photographs_in_folder_called_images_are_listed(tmp_path, rng):
  (tmp_path / "images").mkdir()
  for index in range(3):
    Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(tmp_path / "images" / f"{index}.png")
  assert len(photos.find_photos(tmp_path)) == 3


def test_too_large_picture_is_skipped(pictures, monkeypatch, capsys):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
  with pytest.raises(UserError, match="The 30 pictures give no 16x16 tile"):
    photos.tiles(photos.find_photos(pictures), tile_size=16, shorter_side=100)
  assert "left out 30 of 30 pictures" in capsys.readouterr().out


def test_folder_without_pictures_is_rejected(tmp_path):
  with pytest.raises(UserError, match="contains no pictures"):
    photos.find_photos(tmp_path)
  with pytest.raises(UserError, match="not a folder"):
    photos.find_photos(tmp_path / "nowhere")


def test_unpacked_package_is_reused_and_missing_program_is_reported(tmp_path, monkeypatch):
  (tmp_path / "some-package").mkdir()
  monkeypatch.setenv("PATH", "")
  assert unpacked("some-package", tmp_path) == tmp_path / "some-package"
  with pytest.raises(UserError, match="needs apt-get"):
    unpacked("another-package", tmp_path)
