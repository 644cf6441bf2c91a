"""Image data sets by name, all with the same interface.

A source has `split_names`, `image_shape`, `num_classes` (0 without labels), `num_examples(split)`, endless shuffled
batches `train(batch_size, seed, start_step)`, ordered ones `batches(split, batch_size)`, and a few images to show,
`examples(split, num)`. A batch is {"image": uint8 [B, H, W, C], "label": int32 [B]}.

Use the split "validation" to choose settings, and "held_out" only for the final results. There is no split "validation"
if the config lacks the field with its size.
"""

import itertools
import pathlib

import numpy as np
import tqdm
from ml_collections import ConfigDict

from tfvq.data import photos, vizdoom
from tfvq.data.arrays import ArraySource
from tfvq.data.debian import unpacked
from tfvq.data.tfds_images import TfdsImages
from tfvq.errors import UserError
from tfvq.files import atomic_write

# Part of the seeds of the episodes: with other numbers, the frames would change.
_SEED_NUMBERS = {"train": 0, "held_out": 1, "unseen_map": 2, "validation": 3}


class ImageArrays(ArraySource):
  """Images in memory; arguments as for `ArraySource`.

  Raises:
    UserError: "image" is not uint8 [N, H, W, C] in some split, or a label is not one of the classes.
  """

  def __init__(self, splits: dict[str, dict[str, np.ndarray]], num_classes: int = 0):
    for split, arrays in splits.items():
      images = arrays["image"]
      if images.dtype != np.uint8 or images.ndim != 4:
        raise UserError(
          f"The images of the split {split!r} are {images.dtype} {list(images.shape)}; convert them to uint8 "
          "[N, height, width, channels] with values from 0 to 255."
        )
    super().__init__(splits, num_classes)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels)."""
    return self.splits["train"]["image"].shape[1:]

  def examples(self, split: str, num: int) -> np.ndarray:
    """Images spread evenly over a split, uint8 [num, H, W, C]."""
    images = self.splits[split]["image"]
    return images[np.linspace(0, len(images) - 1, min(num, len(images))).astype(int)]


def open_image_source(data: ConfigDict, folder: pathlib.Path, seed: int):
  """Opens the data set that a config's `data` names.

  Args:
    data: Fields of the data set; `source` is its name.
    folder: Where collected data are kept.
    seed: Seed of the episodes to collect.

  Returns:
    A source with the splits "train", "validation" (unless the config sets its size to 0), "held_out" and, for ViZDoom
    frames, "unseen_map".

  Raises:
    UserError: A package or a file is missing, or a file is damaged.
  """
  return SOURCES[data.source](data, folder, seed)


def _vizdoom(data, folder, seed):
  """Frames of one scenario for training, validation and testing, and of another scenario that is never trained on."""
  train = {"num_episodes": data.num_train_episodes, "frames_per_episode": data.train_frames_per_episode}
  train["tics_per_frame"] = data.train_tics_per_frame
  held_out = {"num_episodes": data.num_held_out_episodes, "frames_per_episode": data.held_out_frames_per_episode}
  held_out["tics_per_frame"] = data.held_out_tics_per_frame
  validation = {**held_out, "num_episodes": data.get("num_validation_episodes", 0)}
  plan = {
    "train": [{"scenario": data.scenario, **train}],
    "validation": [{"scenario": data.scenario, **validation}],
    "held_out": [{"scenario": data.scenario, **held_out}],
    "unseen_map": [{"scenario": data.unseen_scenario, **held_out}],
  }
  return ImageArrays(_collected(plan, data.image_size, folder, seed))


def _vizdoom_scenarios(data, folder, seed):
  """Frames of several scenarios; the scenario is the class."""
  num_episodes_of = {
    "train": data.num_train_episodes,
    "validation": data.get("num_validation_episodes", 0),
    "held_out": data.num_held_out_episodes,
  }
  plan = {
    split: [
      {
        "scenario": scenario,
        "num_episodes": num_episodes,
        "frames_per_episode": data.frames_per_episode,
        "tics_per_frame": data.tics_per_frame,
      }
      for scenario in data.scenarios
    ]
    for split, num_episodes in num_episodes_of.items()
  }
  return ImageArrays(_collected(plan, data.image_size, folder, seed), num_classes=len(data.scenarios))


def _collected(plan, image_size, folder, seed):
  """Frames of every split that has episodes.

  `plan` lists the arguments of `vizdoom.collect` for each split, one entry per class.
  """
  for entry in itertools.chain.from_iterable(plan.values()):
    vizdoom.check(entry["scenario"], entry["tics_per_frame"])
  splits = {}
  for split, entries in plan.items():
    num_episodes = sum(entry["num_episodes"] for entry in entries)
    if not num_episodes:
      continue

    def make(progress, number=_SEED_NUMBERS[split], entries=entries):
      parts = []
      for label, entry in enumerate(entries):
        first_seed = (10**7 * seed + 10**6 * number + 10**4 * label) % 2**31  # ViZDoom takes 32 bits
        part = vizdoom.collect(**entry, image_size=image_size, seed=first_seed, progress=progress)
        parts.append({**part, "label": np.full(len(part["image"]), label, np.int32)})
      return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    splits[split] = _cached(folder / f"{split}.npz", make, f"frames {split}", "episode", num_episodes)
  return splits


def _photos(data, folder, seed):
  """Tiles of the photographs in a folder, or in Debian's wallpaper packages."""
  del seed
  validation_percent = data.get("validation_percent", 0)
  split_names = ("train", "validation", "held_out") if validation_percent else ("train", "held_out")
  paths = {split: folder / f"{split}.npz" for split in split_names}
  if not all(path.exists() for path in paths.values()):
    folders = [data.folder] if data.folder else [unpacked(package, data.cache) for package in data.packages]
    found = [path for folder_of_photos in folders for path in photos.find_photos(folder_of_photos)]
    with tqdm.tqdm(total=len(found), desc="photographs", unit="photo", dynamic_ncols=True) as bar:
      splits = photos.tiles(
        found, data.image_size, data.shorter_side, bar.update, validation_percent=validation_percent
      )
    for split, path in paths.items():
      with atomic_write(path) as temporary:
        np.savez(temporary, **splits[split])
  return ImageArrays({split: _load(path) for split, path in paths.items()})


def _tfds(data, folder, seed):
  del folder, seed
  return TfdsImages(
    data.name, data.held_out, data.image_size, data.data_dir, validation_percent=data.get("validation_percent", 0)
  )


def _cached(path, make, title, unit, num_parts):
  """Loads the arrays in an .npz file, or makes and writes them if there is no such file."""
  if not path.exists():
    with tqdm.tqdm(total=num_parts, desc=title, unit=unit, dynamic_ncols=True) as bar:
      arrays = make(bar.update)
    with atomic_write(path) as temporary:
      np.savez(temporary, **arrays)
    return arrays
  return _load(path)


def _load(path):
  try:
    with np.load(path) as file:
      return dict(file)
  except (OSError, MemoryError) as error:
    raise UserError(f"{path} could not be read ({getattr(error, 'strerror', None) or error}).") from error
  except Exception as error:  # NumPy raises many kinds of exceptions for a damaged file
    raise UserError(f"{path} is damaged: delete its folder and run the stage `data` again.") from error


SOURCES = {"photos": _photos, "tfds": _tfds, "vizdoom": _vizdoom, "vizdoom_scenarios": _vizdoom_scenarios}
