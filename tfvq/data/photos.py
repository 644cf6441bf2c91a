"""Photographs, cut into square tiles and split by photograph."""

import pathlib
import re

import numpy as np

from tfvq.errors import UserError
from tfvq.extras import extra
from tfvq.files import sha256

with extra("data"):
  from PIL import Image

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_MIN_STDDEV = 10.0  # of a tile's values; flatter tiles, such as sky, are left out
_HELD_OUT_SHARE = 0.1


def find_photos(folder) -> list[pathlib.Path]:
  """Lists the picture files below a folder, each photograph once, sorted by name.

  Wallpaper packages contain a photograph in many sizes, NAME/contents/images/WIDTHxHEIGHT.png: the largest is listed.

  Raises:
    UserError: There is no such folder, or no picture in it.
  """
  folder = pathlib.Path(folder).expanduser()
  if not folder.is_dir():
    raise UserError(f"{folder} is not a folder: give a folder of pictures.")
  largest = {}
  for path in sorted(folder.rglob("*")):
    if path.suffix.lower() in _SUFFIXES and path.is_file() and not path.is_symlink():
      photograph = path.parent if _is_one_of_many_sizes(path) else path
      if photograph not in largest or path.stat().st_size > largest[photograph].stat().st_size:
        largest[photograph] = path
  if not largest:
    raise UserError(f"{folder} contains no pictures ({', '.join(_SUFFIXES)}).")
  return list(largest.values())


def tiles(
  paths, tile_size: int, shorter_side: int, progress=lambda: None, *, validation_percent: int = 0
) -> dict[str, dict[str, np.ndarray]]:
  """Cuts photographs into tiles.

  Args:
    paths: Picture files.
    tile_size: Height and width of a tile in pixels.
    shorter_side: Larger photographs are first reduced until their shorter side has this many pixels.
    progress: Called after each photograph.
    validation_percent: Percentage of the photographs in the split "validation"; 0 for no such split.

  Returns:
    The splits "train", "validation" and "held_out" (a tenth of the photographs), each
    {"image": uint8 [N, tile_size, tile_size, 3]}. A photograph's split depends only on the contents of its file, and
    which photographs are held out does not depend on `validation_percent`. Flat tiles are left out.

  Raises:
    UserError: No file could be read, or a split has no tile.
  """
  split_names = ("train", "validation", "held_out") if validation_percent else ("train", "held_out")
  found = {split: [] for split in split_names}
  broken = []
  for path in paths:
    try:
      photograph, checksum = _read(path, shorter_side), sha256(path)
    except Exception:  # Pillow raises many kinds for a damaged file, and one for a too large picture
      broken.append(path)
    else:
      found[_split_of(checksum, validation_percent)].extend(_cut(photograph, tile_size))
    progress()
  if broken:
    names = ", ".join(path.name for path in broken[:5])
    print(f"left out {len(broken)} of {len(paths)} pictures that could not be read: {names}")
  for split, found_tiles in found.items():
    if not found_tiles:
      raise UserError(
        f"The {len(paths)} pictures give no {tile_size}x{tile_size} tile for the split {split}: add more."
      )
  return {split: {"image": np.stack(found_tiles)} for split, found_tiles in found.items()}


def _split_of(checksum, validation_percent):
  """The split of a photograph, chosen by its checksum."""
  place = int(checksum[:8], 16) / 2**32
  if place < _HELD_OUT_SHARE:
    return "held_out"
  return "validation" if place < _HELD_OUT_SHARE + validation_percent / 100 else "train"


def _is_one_of_many_sizes(path):
  return path.parent.parent.name == "contents" and re.fullmatch(r"\d+x\d+", path.stem)


def _read(path, shorter_side):
  with Image.open(path) as file:
    image = file.convert("RGB")
  scale = shorter_side / min(image.size)
  if scale < 1:
    size = tuple(max(shorter_side, round(scale * side)) for side in image.size)
    image = image.resize(size, Image.Resampling.LANCZOS)
  return np.asarray(image)


def _cut(photograph, size):
  """Cuts whole tiles from a photograph, [H, W, 3] -> list of [size, size, 3]."""
  rows, columns = photograph.shape[0] // size, photograph.shape[1] // size
  grid = photograph[: rows * size, : columns * size].reshape(rows, size, columns, size, 3).transpose(0, 2, 1, 3, 4)
  return [tile for tile in grid.reshape(-1, size, size, 3) if tile.std() >= _MIN_STDDEV]
