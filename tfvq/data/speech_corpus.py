"""A prepared corpus of speech: trimmed, level, split by sentence, kept as TFRecord shards.

The split "train" holds stretches of equal length, each of one speaker, made of recordings joined end to end;
"validation" and "held_out" hold whole recordings.
"""

import collections
import hashlib
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf
import tqdm

from tfvq.data.audio_files import SAMPLE_RATE_HZ, to_int16
from tfvq.errors import UserError
from tfvq.files import read_json, sha256, write_json, written_whole
from tfvq.ops.mu_law import LEVEL

SPLITS = ("train", "validation", "held_out")

_VERSION = 1
_FRAME_SAMPLES = 160
_SILENCE_DB = -40.0  # below the loud frames of a recording
_PAUSE_FRAMES = 5  # kept to either side of sound: no silence is longer than twice this
_LEAST_SAMPLES = SAMPLE_RATE_HZ // 10
_STRETCH_SAMPLES = 10 * SAMPLE_RATE_HZ
_STRETCHES_PER_SHARD = 256


class Clip(NamedTuple):
  """A whole recording."""

  sentence: str
  speaker: int
  audio: np.ndarray  # float32 [T] in -1..1


class SpeechCorpus:
  """A corpus that `prepare_corpus` wrote.

  Args:
    folder: Where it is.

  Raises:
    UserError: There is none, or a shard is missing, cut short or altered.
  """

  def __init__(self, folder):
    self._folder = pathlib.Path(folder)
    self._manifest = read_json(self._folder / "manifest.json")
    if self._manifest["version"] != _VERSION:
      raise UserError(f"{folder} holds a corpus of another version: delete it and run the stage `data` again.")
    for shard in self._manifest["shards"]:
      path = self._folder / shard["file"]
      if not path.exists() or sha256(path) != shard["sha256"]:
        state = "is not what was written" if path.exists() else "is missing"
        raise UserError(f"{path} {state}: delete {folder} and run the stage `data` again.")

  @property
  def speakers(self) -> list[str]:
    """Names of the speakers; their places are their ids."""
    return self._manifest["speakers"]

  @property
  def split_names(self) -> tuple[str, ...]:
    """Names of the splits."""
    return SPLITS

  def seconds(self, split: str) -> float:
    """Length of a split's audio."""
    return sum(shard["num_samples"] for shard in self._shards(split)) / SAMPLE_RATE_HZ

  def train(self, batch_size: int, crop_samples: int, seed: int) -> tf.data.Dataset:
    """Random crops of the split "train" without end, {"audio": float32 [B, crop_samples], "speaker": int32 [B]}."""
    paths = [str(self._folder / shard["file"]) for shard in self._shards("train")]
    num_stretches = sum(shard["num_records"] for shard in self._shards("train"))
    num_crops = (_STRETCH_SAMPLES - crop_samples) // crop_samples

    def crops(stretch):
      offset = tf.random.uniform([], 0, _STRETCH_SAMPLES - num_crops * crop_samples, tf.int32, seed=seed)
      audio = tf.reshape(stretch["audio"][offset : offset + num_crops * crop_samples], [num_crops, crop_samples])
      return {"audio": audio, "speaker": tf.fill([num_crops], stretch["speaker"])}

    stretches = tf.data.TFRecordDataset(paths).map(_parse).shuffle(min(num_stretches, 512), seed=seed).repeat()
    examples = stretches.map(crops).unbatch().shuffle(2048, seed=seed)
    batches = examples.batch(batch_size, drop_remainder=True)
    return batches.map(lambda batch: {**batch, "audio": _to_float(batch["audio"])}).prefetch(tf.data.AUTOTUNE)

  def clips(self, split: str) -> list[Clip]:
    """The recordings of "validation" or "held_out", in order of speaker and sentence."""
    clips = []
    for shard in self._shards(split):
      for record in tf.data.TFRecordDataset(str(self._folder / shard["file"])).map(_parse):
        audio = _to_float(record["audio"]).numpy()
        clips.append(Clip(record["sentence"].numpy().decode(), int(record["speaker"]), audio))
    return clips

  def _shards(self, split):
    return [shard for shard in self._manifest["shards"] if shard["split"] == split]


def prepare_corpus(folder, recordings) -> None:
  """Reads, prepares and writes recordings.

  What cannot be read is left out, told of, and listed in the manifest, which is written last.

  Args:
    folder: Where to write.
    recordings: `tfvq.data.speech_sources.Recording`s, a sized iterable.

  Raises:
    UserError: No recording could be read, a split is empty, or the folder cannot be written.
  """
  folder = pathlib.Path(folder)
  speakers = []  # in order of appearance
  writers = {split: _Shards(folder, split) for split in SPLITS}
  joined = collections.defaultdict(list)
  skipped = []
  progress = tqdm.tqdm(total=len(recordings), desc="recordings", unit="recording", dynamic_ncols=True)
  for recording, audio, error in _read(recordings):
    progress.update()
    if error:
      skipped.append(f"{recording.speaker}/{recording.sentence}: {error}")
      continue
    if recording.speaker not in speakers:
      speakers.append(recording.speaker)
    split, speaker = split_of(recording.sentence), speakers.index(recording.speaker)
    if split == "train":
      _join(joined[recording.speaker], audio, speaker, writers[split])
    else:
      writers[split].add(audio, speaker, recording.sentence)
  progress.close()
  if len(skipped) == len(recordings):
    raise UserError(f"None of the {len(skipped)} recordings could be used; the first: {skipped[0]}")
  if skipped:
    print(f"{len(skipped)} of {len(recordings)} recordings were left out; the first: {skipped[0]}")
  shards = [shard for writer in writers.values() for shard in writer.finish()]
  for split in SPLITS:
    if not any(shard["split"] == split for shard in shards):
      raise UserError(f"The recordings are too few: none is left for the split {split!r}.")
  manifest = {"version": _VERSION, "sample_rate_hz": SAMPLE_RATE_HZ, "speakers": speakers}
  write_json(folder / "manifest.json", {**manifest, "skipped": skipped, "shards": shards})


def split_of(sentence: str) -> str:
  """The split of a sentence, the same whoever says it: one in twelve is held out, one in twenty-four validates."""
  place = int(hashlib.sha256(sentence.encode()).hexdigest()[:8], 16) % 24
  return "held_out" if place < 2 else "validation" if place == 2 else "train"


def without_silence(audio: np.ndarray) -> np.ndarray:
  """Audio, float [T] -> the same with silences cut to 0.1 s, at the ends to 0.05 s; empty if all is silent."""
  frames = audio[: len(audio) // _FRAME_SAMPLES * _FRAME_SAMPLES].reshape(-1, _FRAME_SAMPLES)
  if not len(frames):
    return audio[:0]
  power = np.mean(frames.astype(np.float64) ** 2, axis=1)
  loud = np.percentile(power, 95)
  sounding = power > max(loud * 10 ** (_SILENCE_DB / 10), 1e-9)
  kept = np.convolve(sounding, np.ones(2 * _PAUSE_FRAMES + 1), mode="same") > 0
  return frames[kept].reshape(-1)


def level(audio: np.ndarray) -> np.ndarray:
  """Audio, float [T] -> float32 at the level that all recordings are brought to."""
  if not len(audio):
    return audio.astype(np.float32)
  gain = LEVEL / max(np.sqrt(np.mean(audio.astype(np.float64) ** 2)), 1e-6)
  return (audio * min(gain, 0.98 / np.max(np.abs(audio)))).astype(np.float32)


def _read(recordings):
  """Reads and prepares recordings, several at a time, in order; yields each with its audio or what is wrong with it."""
  waiting = {}

  def indices():
    for index, recording in enumerate(recordings):
      waiting[index] = recording
      yield index

  def read(index):
    try:
      audio = level(without_silence(waiting[int(index)].read()))
    except UserError as error:
      return np.zeros(0, np.float32), str(error)
    return audio, "" if len(audio) >= _LEAST_SAMPLES else "it is shorter than 0.1 s, or silent"

  dataset = tf.data.Dataset.from_generator(indices, output_signature=tf.TensorSpec([], tf.int64)).map(
    lambda index: (index, *tf.py_function(read, [index], [tf.float32, tf.string])),
    num_parallel_calls=tf.data.AUTOTUNE,
  )
  for index, audio, error in dataset.as_numpy_iterator():
    yield waiting.pop(int(index)), audio, error.decode()


def _join(pending, audio, speaker, writer):
  """Adds a recording to those of its speaker that are not yet enough for a stretch."""
  pending.append(audio)
  while sum(len(part) for part in pending) >= _STRETCH_SAMPLES:
    together = np.concatenate(pending)
    writer.add(together[:_STRETCH_SAMPLES], speaker, "")
    pending[:] = [together[_STRETCH_SAMPLES:]]


class _Shards:
  """Writes the records of a split, so many to a file."""

  def __init__(self, folder, split):
    self._folder, self._split = folder, split
    self._records, self._num_samples, self._shards = [], 0, []

  def add(self, audio, speaker, sentence):
    feature = {
      "audio": tf.train.Feature(bytes_list=tf.train.BytesList(value=[to_int16(audio).tobytes()])),
      "speaker": tf.train.Feature(int64_list=tf.train.Int64List(value=[speaker])),
      "sentence": tf.train.Feature(bytes_list=tf.train.BytesList(value=[sentence.encode()])),
    }
    self._records.append(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    self._num_samples += len(audio)
    if len(self._records) == _STRETCHES_PER_SHARD:
      self._write()

  def finish(self):
    if self._records:
      self._write()
    return self._shards

  def _write(self):
    path = self._folder / f"{self._split}-{len(self._shards):05d}.tfrecord"
    with written_whole(path) as temporary, tf.io.TFRecordWriter(str(temporary)) as writer:
      for record in self._records:
        writer.write(record)
    self._shards.append(
      {
        "split": self._split,
        "file": path.name,
        "num_records": len(self._records),
        "num_samples": self._num_samples,
        "sha256": sha256(path),
      }
    )
    self._records, self._num_samples = [], 0


def _parse(record):
  features = {
    "audio": tf.io.FixedLenFeature([], tf.string),
    "speaker": tf.io.FixedLenFeature([], tf.int64),
    "sentence": tf.io.FixedLenFeature([], tf.string),
  }
  example = tf.io.parse_single_example(record, features)
  return {
    "audio": tf.io.decode_raw(example["audio"], tf.int16),
    "speaker": tf.cast(example["speaker"], tf.int32),
    "sentence": example["sentence"],
  }


def _to_float(audio):
  return tf.cast(audio, tf.float32) / 32767
