import numpy as np
import pytest
from PIL import Image

from tfvq.data import photos
from tfvq.errors import UserError


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
