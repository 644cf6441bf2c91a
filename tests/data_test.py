import numpy as np
import pytest

from tests.tiny import config_of, tiny
from tfvq.data import vizdoom
from tfvq.data.arrays import ArraySource
from tfvq.data.debian import unpacked
from tfvq.data.image_sources import ImageArrays, open_image_source
from tfvq.errors import UserError


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


def test_unpacked_package_is_reused_and_missing_program_is_reported(tmp_path, monkeypatch):
  (tmp_path / "some-package").mkdir()
  monkeypatch.setenv("PATH", "")
  assert unpacked("some-package", tmp_path) == tmp_path / "some-package"
  with pytest.raises(UserError, match="needs apt-get"):
    unpacked("another-package", tmp_path)
