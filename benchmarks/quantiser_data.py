"""Small images and spectrograms for benchmarks/quantisers.py, from the sources of the configs."""

import pathlib

import numpy as np
import tensorflow as tf

from tfvq.configs import frames, photos, speech
from tfvq.data.image_sources import open_image_source
from tfvq.data.speech_corpus import SPLITS, SpeechCorpus
from tfvq.data.speech_preparation import prepare_corpus
from tfvq.data.speech_sources import find_recordings
from tfvq.files import atomic_write
from tfvq.layers import LogMel

IMAGE_SIZE, SHORTER_SIDE = 32, 512
NUM_BANDS, HOP_SAMPLES, CROP_FRAMES = 80, 128, 128
IMAGE_SHAPE, SPECTRA_SHAPE = (IMAGE_SIZE, IMAGE_SIZE, 3), (CROP_FRAMES, NUM_BANDS)
MOST_TRAIN, MOST_OTHERS = 4096, 1024


def load(name: str, folder: pathlib.Path, pictures: str = "") -> dict[str, np.ndarray]:
  """Loads the splits of a data set, normalised to mean 0 and variance 1 of the training set.

  Args:
    name: `frames`, `photographs` or `speech`.
    folder: Folder of the data, which are made on first use.
    pictures: Folder of photographs; empty for those of Debian's packages.

  Returns:
    Images, float32 [N, 32, 32, 3], or log-mel spectrograms, float32 [N, 128, 80], for each of the splits "train",
    "validation" and "held_out". All frames of an episode, tiles of a photograph and crops of a recording are in the
    same split.
  """
  path = folder / f"{name}.npz"
  if not path.exists():
    with atomic_write(path) as temporary:
      np.savez(temporary, **_MAKERS[name](folder / name, pictures))
  with np.load(path) as arrays:
    splits = {split: arrays[split].astype(np.float32) for split in SPLITS}
  mean, deviation = splits["train"].mean(), splits["train"].std()
  return {split: (values - mean) / deviation for split, values in splits.items()}


def _frames(folder, _):
  """Frames of episodes with seeds of their own."""
  data = frames.small().data
  data.image_size = IMAGE_SIZE
  return _images(open_image_source(data, folder, seed=0))


def _photographs(folder, pictures):
  """Tiles of reduced photographs."""
  data = photos.small().data
  data.update({"folder": pictures, "image_size": IMAGE_SIZE, "shorter_side": SHORTER_SIDE})
  return _images(open_image_source(data, folder, seed=0))


def _images(source):
  return {split: _some(split, source.splits[split]["image"]) for split in SPLITS}


def _speech(folder, _):
  """Log-mel spectrograms of random crops for training, and of all whole crops of the other splits."""
  if not (folder / "manifest.json").exists():
    data = speech.small().data
    prepare_corpus(folder, find_recordings(data), data.sample_rate_hz)
  corpus = SpeechCorpus(folder)
  crop_samples = CROP_FRAMES * HOP_SAMPLES
  audio = {"train": np.concatenate([c["audio"] for c in corpus.train(64, crop_samples, 0).take(MOST_TRAIN // 64)])}
  for split in ("validation", "held_out"):
    clips = [clip.audio[: len(clip.audio) // crop_samples * crop_samples] for clip in corpus.clips(split)]
    audio[split] = np.concatenate(clips).reshape([-1, crop_samples])
  log_mel = LogMel(NUM_BANDS, HOP_SAMPLES)
  spectra = {split: [log_mel(tf.constant(crops[np.newaxis]))[0] for crops in audio[split]] for split in SPLITS}
  return {split: _some(split, np.stack(values)) for split, values in spectra.items()}


def _some(split, values):
  """Examples spread evenly over a split."""
  most = MOST_TRAIN if split == "train" else MOST_OTHERS
  return values[np.linspace(0, len(values) - 1, min(len(values), most)).astype(int)]


_MAKERS = {"frames": _frames, "photographs": _photographs, "speech": _speech}
NAMES = tuple(_MAKERS)
