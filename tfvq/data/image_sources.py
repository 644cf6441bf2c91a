"""The image data sets, each behind the same small interface: `train`, `batches`, `num_examples`, `image_shape`."""

import pathlib

import numpy as np
import tqdm
from ml_collections import ConfigDict

from tfvq.data import vizdoom
from tfvq.data.arrays import ArraySource
from tfvq.errors import UserError
from tfvq.files import written_whole


class ImageArrays(ArraySource):
  """Images in memory."""

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels)."""
    return self.splits["train"]["image"].shape[1:]


def open_image_source(data: ConfigDict, folder: pathlib.Path, seed: int):
  """The data set that a config's `data` names.

  Args:
    data: Fields of the data set; `source` is its name.
    folder: Where data that are dear to make are kept.
    seed: Seed of what is drawn at random.

  Returns:
    A source with the splits "train", "held_out" and, for ViZDoom, "unseen_map".

  Raises:
    UserError: A package or a file is missing, or damaged.
  """
  return _SOURCES[data.source](data, folder, seed)


def _vizdoom(data, folder, seed):
  splits = {
    "train": (data.scenario, data.num_train_episodes, data.train_frames_per_episode, data.train_tics_per_frame, 0),
    "held_out": (
      data.scenario,
      data.num_held_out_episodes,
      data.held_out_frames_per_episode,
      data.held_out_tics_per_frame,
      10**6,
    ),
    "unseen_map": (
      data.unseen_scenario,
      data.num_held_out_episodes,
      data.held_out_frames_per_episode,
      data.held_out_tics_per_frame,
      2 * 10**6,
    ),
  }
  return ImageArrays(
    {
      split: _kept(
        folder / f"{split}.npz",
        lambda progress, scenario=scenario, episodes=episodes, frames=frames, tics=tics, offset=offset: vizdoom.collect(
          scenario,
          num_episodes=episodes,
          frames_per_episode=frames,
          tics_per_frame=tics,
          image_size=data.image_size,
          seed=10**7 * seed + offset,
          progress=progress,
        ),
        f"frames {split}",
        episodes,
      )
      for split, (scenario, episodes, frames, tics, offset) in splits.items()
    }
  )


def _kept(path, make, title, num_parts):
  """The arrays in an .npz file, made and written first if there is none."""
  if not path.exists():
    with tqdm.tqdm(total=num_parts, desc=title, unit="episode", dynamic_ncols=True) as bar:
      arrays = make(bar.update)
    with written_whole(path) as temporary:
      np.savez(temporary, **arrays)
    return arrays
  try:
    with np.load(path) as file:
      return dict(file)
  except Exception as error:  # NumPy raises many kinds for a damaged file
    raise UserError(f"{path} is damaged: delete it and run the stage `data` again.") from error


_SOURCES = {"vizdoom": _vizdoom}
