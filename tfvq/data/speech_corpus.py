"""A prepared speech corpus in TFRecord shards, made by `tfvq.data.speech_preparation`.

The split "train" contains segments of equal length, cut from concatenated recordings of one speaker. "validation" and
"held_out" contain whole recordings.
"""

import itertools
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tfvq.data.audio_files import to_int16
from tfvq.data.shards import check_shards
from tfvq.errors import UserError
from tfvq.files import read_json
from tfvq.ops.loudness import FRAMES_PER_SECOND

SPLITS = ("train", "validation", "held_out")
VERSION = 3  # of the records and of the manifest; before 3, recordings could be swapped
SEGMENT_SECONDS = 10
NUM_PHONE_FIELDS = 5  # ids of this, the previous and the next phone; position in this one in percent; its length

_FILES_AT_ONCE = 64


class Clip(NamedTuple):
  """A whole recording."""

  name: str
  speaker: int
  audio: np.ndarray  # float32 [T] in -1..1
  phones: np.ndarray  # int32 [T / frame_samples, NUM_PHONE_FIELDS]; empty, [0, NUM_PHONE_FIELDS], if unknown


class SpeechCorpus:
  """A corpus on disk.

  Args:
    folder: Its folder.

  Raises:
    UserError: There is no corpus, or a shard is missing, truncated or altered.
  """

  def __init__(self, folder):
    self._folder = pathlib.Path(folder)
    self._manifest = read_json(self._folder / "manifest.json")
    if self._manifest["version"] != VERSION:
      raise UserError(
        f"{folder} contains a corpus of version {self._manifest['version']}, but this program reads version {VERSION}: "
        f"delete {folder} and run the stage `data` again."
      )
    check_shards(self._folder, self._manifest["shards"], "data")

  @property
  def speakers(self) -> list[str]:
    """Names of the speakers, in the order of their ids."""
    return self._manifest["speakers"]

  @property
  def sample_rate_hz(self) -> int:
    """Sample rate of the audio, a multiple of 100."""
    return self._manifest["sample_rate_hz"]

  @property
  def frame_samples(self) -> int:
    """Samples of a frame of phones, 10 ms."""
    return self.sample_rate_hz // FRAMES_PER_SECOND

  @property
  def phones(self) -> list[str]:
    """Names of the phones, in the order of their ids; empty if they are unknown."""
    return self._manifest["phones"]

  def seconds(self, split: str) -> float:
    """Duration of a split's audio."""
    return sum(shard["num_samples"] for shard in self._shards(split)) / self.sample_rate_hz

  def train(self, batch_size: int, crop_samples: int, seed: int, with_phones: bool = False) -> tf.data.Dataset:
    """Endless random crops of the split "train".

    Args:
      batch_size: B.
      crop_samples: T; a multiple of `frame_samples` if `with_phones`.
      seed: Seed of the crops and of their order.
      with_phones: Whether to return phones too; the corpus must have them.

    Returns:
      Batches {"audio": float32 [B, T], "speaker": int32 [B]}, and "phones", int32 [B, T / frame_samples, 5], if
      `with_phones`.

    Raises:
      UserError: `crop_samples` is too large, or not a multiple of `frame_samples` although phones are wanted.
    """
    segment_samples, frame_samples = SEGMENT_SECONDS * self.sample_rate_hz, self.frame_samples
    if 2 * crop_samples > segment_samples:
      raise UserError(
        f"Training needs crops of {crop_samples} samples, including the context of the networks, but at most "
        f"{segment_samples // 2} are possible: lower config.data.crop_samples."
      )
    paths = [str(self._folder / shard["file"]) for shard in self._shards("train")]
    num_segments = sum(shard["num_records"] for shard in self._shards("train"))
    num_crops = (segment_samples - crop_samples) // crop_samples
    crop_frames = crop_samples // frame_samples
    if with_phones and crop_samples % frame_samples:
      raise UserError(f"Crops of {crop_samples} samples are not a multiple of {frame_samples}, the frame of phones.")

    def crops(segment):
      frames = (segment_samples - num_crops * crop_samples) // frame_samples
      frame = tf.random.uniform([], 0, frames, tf.int32, seed=seed)
      offset = frame * frame_samples
      audio = tf.reshape(segment["audio"][offset : offset + num_crops * crop_samples], [num_crops, crop_samples])
      crop = {"audio": audio, "speaker": tf.fill([num_crops], segment["speaker"])}
      if with_phones:
        phones = segment["phones"][frame : frame + num_crops * crop_frames]
        crop["phones"] = tf.reshape(phones, [num_crops, crop_frames, NUM_PHONE_FIELDS])
      return crop

    # Interleaves all shards, because recordings were written speaker by speaker.
    records = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths), seed=seed)
    num_open = min(len(paths), _FILES_AT_ONCE)
    records = records.interleave(tf.data.TFRecordDataset, cycle_length=num_open)
    segments = records.map(_parse).shuffle(min(num_segments, 512), seed=seed).repeat()
    examples = segments.map(crops).unbatch().shuffle(2048, seed=seed)
    batches = examples.batch(batch_size, drop_remainder=True)
    return batches.map(lambda batch: {**batch, "audio": _to_float(batch["audio"])}).prefetch(tf.data.AUTOTUNE)

  def clips(self, split: str) -> "_Clips":
    """The recordings of "validation" or "held_out", or the segments of "train", in the order they were written.

    The result has a length and reads during iteration, so that a corpus may be larger than memory.
    """
    shards = self._shards(split)
    paths = [str(self._folder / shard["file"]) for shard in shards]
    return _Clips(paths, sum(shard["num_records"] for shard in shards))

  def clips_of_length(self, split: str, seconds: float, num: int) -> list[Clip]:
    """The `num` recordings with lengths closest to `seconds`, or fewer, taken from each speaker in turn."""
    nearest = {}
    for clip in self.clips(split):
      found = nearest.setdefault(clip.speaker, [])
      found.append(clip)
      found.sort(key=lambda clip: abs(len(clip.audio) / self.sample_rate_hz - seconds))
      del found[num:]
    in_turn = itertools.zip_longest(*(nearest[speaker] for speaker in sorted(nearest)))
    return [clip for row in in_turn for clip in row if clip is not None][:num]

  def _shards(self, split):
    return [shard for shard in self._manifest["shards"] if shard["split"] == split]


class _Clips:
  """The clips in TFRecord files."""

  def __init__(self, paths, num_clips):
    self._paths, self._num_clips = paths, num_clips

  def __len__(self):
    return self._num_clips

  def __iter__(self):
    for record in tf.data.TFRecordDataset(self._paths).map(_parse) if self._paths else ():
      audio = _to_float(record["audio"]).numpy()
      yield Clip(record["name"].numpy().decode(), int(record["speaker"]), audio, record["phones"].numpy())


def to_record(audio: np.ndarray, phones: np.ndarray, speaker: int, name: str) -> bytes:
  """Serialises a clip or a segment as a record of a shard.

  Args:
    audio: float [T] in -1..1.
    phones: [T / frame_samples, NUM_PHONE_FIELDS], or empty.
    speaker: Id of the speaker.
    name: Name of the recording; empty for a segment.
  """
  values = {"audio": to_int16(audio).tobytes(), "phones": phones.astype("<i2").tobytes(), "name": name.encode()}
  feature = {key: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value])) for key, value in values.items()}
  feature["speaker"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[speaker]))
  return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def _parse(record):
  features = {
    "audio": tf.io.FixedLenFeature([], tf.string),
    "phones": tf.io.FixedLenFeature([], tf.string),
    "speaker": tf.io.FixedLenFeature([], tf.int64),
    "name": tf.io.FixedLenFeature([], tf.string),
  }
  example = tf.io.parse_single_example(record, features)
  return {
    "audio": tf.io.decode_raw(example["audio"], tf.int16),
    "phones": tf.cast(tf.reshape(tf.io.decode_raw(example["phones"], tf.int16), [-1, NUM_PHONE_FIELDS]), tf.int32),
    "speaker": tf.cast(example["speaker"], tf.int32),
    "name": example["name"],
  }


def _to_float(audio):
  return tf.cast(audio, tf.float32) / 32767
