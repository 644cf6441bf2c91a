import json

import numpy as np
import pytest
from PIL import Image

from tfvq.data import photos, vizdoom
from tfvq.data.arrays import ArraySource
from tfvq.data.codes import read_codes, read_manifest, write_codes
from tfvq.data.debian import unpacked
from tfvq.errors import UserError
from tfvq.files import atomic_write, read_json, write_json


def collect(**changes):
  arguments = {"num_episodes": 2, "frames_per_episode": 6, "tics_per_frame": 14, "image_size": 24, "seed": 3}
  return vizdoom.collect("my_way_home", **{**arguments, **changes})


@pytest.fixture(scope="module")
def frames():
  return collect()


def test_frames_are_what_was_asked_for(frames):
  assert frames["image"].shape == (12, 24, 24, 3) and frames["image"].dtype == np.uint8
  assert frames["image"].std() > 5
  np.testing.assert_array_equal(frames["episode"], [0] * 6 + [1] * 6)
  np.testing.assert_array_equal(frames["tic"], list(range(0, 84, 14)) * 2)
  assert set(frames["action"]) <= set(range(len(vizdoom.ACTIONS)))


def test_frames_depend_on_the_seed_alone(frames):
  again = collect(num_processes=1)
  for key, value in frames.items():
    np.testing.assert_array_equal(again[key], value)
  assert not np.array_equal(collect(seed=4)["image"], frames["image"])


def test_frames_follow_the_actions():
  frames = collect(num_episodes=1, frames_per_episode=60, tics_per_frame=7)
  moved = np.abs(np.diff(frames["image"].astype(int), axis=0)).mean(axis=(1, 2, 3)) > 1
  assert moved.mean() > 0.5


def test_unknown_scenario_and_odd_spacing_are_refused():
  with pytest.raises(UserError, match="my_way_home"):
    vizdoom.collect("nowhere", num_episodes=1, frames_per_episode=1, tics_per_frame=7, image_size=8, seed=0)
  with pytest.raises(UserError, match="multiple of 7"):
    collect(tics_per_frame=10)


def test_no_file_is_left_in_the_current_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  collect(num_episodes=1, frames_per_episode=1)
  assert list(tmp_path.iterdir()) == []


def test_training_batches_go_on_where_a_resumed_run_starts(rng):
  source = ArraySource({"train": {"x": np.arange(10), "y": 2 * np.arange(10)}})
  whole = [batch["x"].numpy() for batch in source.train(4, seed=1).take(12)]
  resumed = [batch["x"].numpy() for batch in source.train(4, seed=1, start_step=5).take(7)]
  np.testing.assert_array_equal(whole[5:], resumed)
  np.testing.assert_array_equal(np.sort(np.concatenate(whole)[:40].reshape(4, 10)), np.tile(np.arange(10), (4, 1)))
  batch = next(iter(source.train(4, seed=1)))
  np.testing.assert_array_equal(batch["y"], 2 * batch["x"])


def write_some_codes(folder, rng, **changes):
  splits = {
    "train": {"codes": rng.integers(0, 300, (5000, 3, 2)), "label": rng.integers(0, 4, 5000).astype(np.int32)},
    "held_out": {"codes": rng.integers(0, 300, (7, 3, 2)), "label": rng.integers(0, 4, 7).astype(np.int32)},
  }
  write_codes(folder, splits, **{"num_embeddings": 300, "num_classes": 4, "autoencoder_sha256": "abc", **changes})
  return splits


def test_codes_come_back_as_written(tmp_path, rng):
  splits = write_some_codes(tmp_path, rng)
  manifest = read_manifest(tmp_path, "abc")
  assert manifest["code_shape"] == [3, 2] and manifest["num_embeddings"] == 300
  assert manifest["bits_per_example"] == pytest.approx(6 * np.log2(300))
  source = read_codes(tmp_path, manifest)
  assert source.num_classes == 4
  for split, arrays in splits.items():
    for key, value in arrays.items():
      np.testing.assert_array_equal(source.splits[split][key], value)


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


def test_a_file_is_atomic_write_or_not_at_all(tmp_path):
  path = tmp_path / "folder" / "value.json"
  write_json(path, {"a": 1})
  with pytest.raises(RuntimeError), atomic_write(path) as temporary:
    temporary.write_text("half")
    raise RuntimeError
  assert read_json(path) == {"a": 1}
  assert [file.name for file in path.parent.iterdir()] == ["value.json"]


def test_a_full_disk_is_told_in_a_sentence_and_spoils_nothing(tmp_path):
  path = tmp_path / "value.json"
  write_json(path, {"a": 1})
  with pytest.raises(UserError, match="No space left"), atomic_write(path), open("/dev/full", "w") as full:
    full.write("x" * 100_000)
  assert read_json(path) == {"a": 1}


def test_a_folder_that_cannot_be_made_is_told_in_a_sentence(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="could not be written"):
    write_json(tmp_path / "file" / "value.json", {})


def test_broken_json_is_told_in_a_sentence(tmp_path):
  (tmp_path / "value.json").write_text("{")
  with pytest.raises(UserError, match="not valid JSON"):
    read_json(tmp_path / "value.json")


@pytest.fixture
def pictures(tmp_path, rng):
  folder = tmp_path / "pictures"
  for index in range(30):
    path = folder / ("nested" if index % 2 else "") / f"{index}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    # The photograph's number is in its red channel, so that a tile tells where it came from.
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


def test_flat_tiles_are_left_out_and_large_photographs_reduced(pictures):
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


def test_a_wallpaper_in_many_sizes_counts_once(tmp_path, rng):
  folder = tmp_path / "Wallpaper" / "contents" / "images"
  folder.mkdir(parents=True)
  for size in (20, 40, 30):
    Image.fromarray(rng.integers(0, 256, (size, size, 3)).astype(np.uint8)).save(folder / f"{size}x{size}.png")
  assert photos.find_photos(tmp_path) == [folder / "40x40.png"]


def test_photographs_in_a_folder_called_images_all_count(tmp_path, rng):
  (tmp_path / "images").mkdir()
  for index in range(3):
    Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(tmp_path / "images" / f"{index}.png")
  assert len(photos.find_photos(tmp_path)) == 3


def test_a_picture_that_is_too_large_is_skipped(pictures, monkeypatch, capsys):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
  with pytest.raises(UserError, match="The 30 pictures give no 16x16 tile"):
    photos.tiles(photos.find_photos(pictures), tile_size=16, shorter_side=100)
  assert "left out 30 of 30 pictures" in capsys.readouterr().out


def test_folders_without_pictures_are_refused(tmp_path):
  with pytest.raises(UserError, match="holds no picture"):
    photos.find_photos(tmp_path)
  with pytest.raises(UserError, match="not a folder"):
    photos.find_photos(tmp_path / "nowhere")


def test_an_unpacked_package_is_not_fetched_again_and_a_missing_program_is_told(tmp_path, monkeypatch):
  (tmp_path / "some-package").mkdir()
  monkeypatch.setenv("PATH", "")
  assert unpacked("some-package", tmp_path) == tmp_path / "some-package"
  with pytest.raises(UserError, match="needs apt-get"):
    unpacked("another-package", tmp_path)
