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
from tfvq.data.shards import check_shards, write_shard
from tfvq.errors import UserError
from tfvq.files import read_json, write_json
from tfvq.ops.loudness import FRAME_SAMPLES, LEVEL, frame_powers, is_sounding

SPLITS = ("train", "validation", "held_out")
NUM_PHONE_FIELDS = 5  # see `phone_frames`

_VERSION = 2
_PAUSE_FRAMES = 5  # kept to either side of sound: no silence is longer than twice this
_LEAST_SAMPLES = SAMPLE_RATE_HZ // 10
_STRETCH_SAMPLES = 10 * SAMPLE_RATE_HZ
_STRETCHES_PER_SHARD = 256


class Clip(NamedTuple):
  """A whole recording."""

  name: str
  speaker: int
  audio: np.ndarray  # float32 [T] in -1..1
  phones: np.ndarray  # int32 [T / 160, 5] as `phone_frames` gives them; empty [0, 5] where they are not known


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
    check_shards(self._folder, self._manifest["shards"], "data")

  @property
  def speakers(self) -> list[str]:
    """Names of the speakers; their places are their ids."""
    return self._manifest["speakers"]

  @property
  def phones(self) -> list[str]:
    """Names of the phones; their places are their ids. Empty where they are not known."""
    return self._manifest["phones"]

  def seconds(self, split: str) -> float:
    """Length of a split's audio."""
    return sum(shard["num_samples"] for shard in self._shards(split)) / SAMPLE_RATE_HZ

  def train(self, batch_size: int, crop_samples: int, seed: int, with_phones: bool = False) -> tf.data.Dataset:
    """Random crops of the split "train" without end.

    Args:
      batch_size: B.
      crop_samples: T; with phones a multiple of 160.
      seed: Seed of the crops and of their order.
      with_phones: Whether to give the phones too; they must be known.

    Returns:
      Batches {"audio": float32 [B, T], "speaker": int32 [B]}, with phones "phones", int32 [B, T / 160, 5].

    Raises:
      UserError: Crops are too long, or with phones not made of whole frames.
    """
    if 2 * crop_samples > _STRETCH_SAMPLES:
      raise UserError(
        f"Training takes crops of {crop_samples} samples, what the networks look at beside them included, and at most "
        f"{_STRETCH_SAMPLES // 2} can be had: lower config.data.crop_samples."
      )
    paths = [str(self._folder / shard["file"]) for shard in self._shards("train")]
    num_stretches = sum(shard["num_records"] for shard in self._shards("train"))
    num_crops = (_STRETCH_SAMPLES - crop_samples) // crop_samples
    crop_frames = crop_samples // FRAME_SAMPLES
    if with_phones and crop_samples % FRAME_SAMPLES:
      raise UserError(f"Crops of {crop_samples} samples are not made of frames of {FRAME_SAMPLES}, as phones are.")

    def crops(stretch):
      frames = (_STRETCH_SAMPLES - num_crops * crop_samples) // FRAME_SAMPLES
      frame = tf.random.uniform([], 0, frames, tf.int32, seed=seed)
      offset = frame * FRAME_SAMPLES
      audio = tf.reshape(stretch["audio"][offset : offset + num_crops * crop_samples], [num_crops, crop_samples])
      crop = {"audio": audio, "speaker": tf.fill([num_crops], stretch["speaker"])}
      if with_phones:
        phones = stretch["phones"][frame : frame + num_crops * crop_frames]
        crop["phones"] = tf.reshape(phones, [num_crops, crop_frames, NUM_PHONE_FIELDS])
      return crop

    stretches = tf.data.TFRecordDataset(paths).map(_parse).shuffle(min(num_stretches, 512), seed=seed).repeat()
    examples = stretches.map(crops).unbatch().shuffle(2048, seed=seed)
    batches = examples.batch(batch_size, drop_remainder=True)
    return batches.map(lambda batch: {**batch, "audio": _to_float(batch["audio"])}).prefetch(tf.data.AUTOTUNE)

  def clips(self, split: str) -> "_Clips":
    """The recordings of "validation" or "held_out", or the stretches of "train", in the order they came in.

    They have a length, and are read while they are gone through, so that a corpus may be larger than the memory.
    """
    shards = self._shards(split)
    paths = [str(self._folder / shard["file"]) for shard in shards]
    return _Clips(paths, sum(shard["num_records"] for shard in shards))

  def _shards(self, split):
    return [shard for shard in self._manifest["shards"] if shard["split"] == split]


class _Clips:
  """Clips in files of records."""

  def __init__(self, paths, num_clips):
    self._paths, self._num_clips = paths, num_clips

  def __len__(self):
    return self._num_clips

  def __iter__(self):
    for record in tf.data.TFRecordDataset(self._paths).map(_parse) if self._paths else ():
      audio = _to_float(record["audio"]).numpy()
      yield Clip(record["name"].numpy().decode(), int(record["speaker"]), audio, record["phones"].numpy())


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
  speakers, phones = [], []  # in order of appearance
  writers = {split: _Shards(folder, split) for split in SPLITS}
  joined = collections.defaultdict(list)
  skipped, labelled = [], None  # whether phones are known is settled by the first recording
  progress = tqdm.tqdm(total=len(recordings), desc="recordings", unit="recording", dynamic_ncols=True)
  for recording, audio, kept, error in _read(recordings):
    progress.update()
    if error:
      skipped.append(f"{recording.name}: {error}")
      continue
    said = recording.phones()
    labelled = bool(said) if labelled is None else labelled
    if bool(said) != labelled:
      skipped.append(f"{recording.name}: its phones are {'known' if said else 'not known'}, unlike those of the others")
      continue
    if recording.speaker not in speakers:
      speakers.append(recording.speaker)
    split = split_of(recording.sentence or recording.name)
    speaker = speakers.index(recording.speaker)
    frames = phone_frames(said, len(kept), phones)[kept]
    if split == "train":
      _join(joined[speaker], audio, frames, speaker, writers[split])
    else:
      writers[split].add(audio, frames, speaker, recording.name)
  progress.close()
  for speaker, pending in joined.items():
    _fill_up(pending, speaker, writers["train"])
  if len(skipped) == len(recordings):
    raise UserError(f"None of the {len(skipped)} recordings could be used; the first: {skipped[0]}")
  if skipped:
    print(f"{len(skipped)} of {len(recordings)} recordings were left out; the first: {skipped[0]}")
  shards = [shard for writer in writers.values() for shard in writer.finish()]
  for split in SPLITS:
    if not any(shard["split"] == split for shard in shards):
      raise UserError(
        f"The recordings are too few: none of the {len(recordings)} is left for the split {split!r}; give 60 or more, "
        "or cut long ones into sentences."
      )
  manifest = {"version": _VERSION, "sample_rate_hz": SAMPLE_RATE_HZ, "speakers": speakers, "phones": phones}
  write_json(folder / "manifest.json", {**manifest, "skipped": skipped, "shards": shards})


def split_of(sentence: str) -> str:
  """The split of a sentence, the same whoever says it: one in twelve is held out, one in twenty-four validates."""
  place = int(hashlib.sha256(sentence.encode()).hexdigest()[:8], 16) % 24
  return "held_out" if place < 2 else "validation" if place == 2 else "train"


def sounding_frames(audio: np.ndarray) -> np.ndarray:
  """Which frames of 160 samples to keep, so that silences become 0.1 s, at the ends 0.05 s: float [T] -> bool [N]."""
  sounding = is_sounding(frame_powers(_frames(audio).reshape(-1)))
  if not len(sounding):
    return sounding
  return np.convolve(sounding, np.ones(2 * _PAUSE_FRAMES + 1), mode="full")[_PAUSE_FRAMES:-_PAUSE_FRAMES] > 0


def phone_frames(phones, num_frames: int, names: list[str]) -> np.ndarray:
  """What is said in each frame of a recording.

  Args:
    phones: Pairs (end in seconds, name), one after another; what follows the last one counts to it.
    num_frames: N, frames of 160 samples.
    names: Names of the phones met so far; new ones are added at its end.

  Returns:
    int32 [N, 5]: ids of the phone, of the one before it and of the one after it, how far the frame lies in it (0..100),
    and its length in frames. [N, 0] if there are no phones.
  """
  if not phones:
    return np.zeros([num_frames, 0], np.int32)
  names += sorted({name for _, name in phones} - set(names))
  ids = np.array([names.index(name) for _, name in phones])
  ends = np.array([round(end * SAMPLE_RATE_HZ / FRAME_SAMPLES) for end, _ in phones])
  begins, ends = np.concatenate([[0], ends[:-1]]), np.concatenate([ends[:-1], [max(num_frames, ends[-1])]])
  place = np.minimum(np.searchsorted(ends, np.arange(num_frames), side="right"), len(ids) - 1)
  lengths = np.maximum(ends - begins, 1)[place]
  position = 100 * (np.arange(num_frames) - begins[place]) // lengths
  neighbours = [ids[place], ids[np.maximum(place - 1, 0)], ids[np.minimum(place + 1, len(ids) - 1)]]
  return np.stack([*neighbours, position, lengths], axis=1).astype(np.int32)


def level(audio: np.ndarray) -> np.ndarray:
  """Audio, float [T] -> float32 at the level that all recordings are brought to."""
  if not len(audio):
    return audio.astype(np.float32)
  gain = LEVEL / max(np.sqrt(np.mean(audio.astype(np.float64) ** 2)), 1e-6)
  return (audio * min(gain, 0.98 / np.max(np.abs(audio)))).astype(np.float32)


def _read(recordings):
  """Reads and prepares recordings, several at a time, in order.

  Yields:
    `(recording, audio, which frames of the recording are left in it, what is wrong with it or "")`.
  """
  waiting = {}

  def indices():
    for index, recording in enumerate(recordings):
      waiting[index] = recording
      yield index

  def read(index):
    try:
      audio = waiting[int(index)].read()
    except UserError as error:
      return np.zeros(0, np.float32), np.zeros(0, bool), str(error)
    kept = sounding_frames(audio)
    audio = level(_frames(audio)[kept].reshape(-1))
    return audio, kept, "" if len(audio) >= _LEAST_SAMPLES else "it is shorter than 0.1 s, or silent"

  dataset = tf.data.Dataset.from_generator(indices, output_signature=tf.TensorSpec([], tf.int64)).map(
    lambda index: (index, *tf.py_function(read, [index], [tf.float32, tf.bool, tf.string])),
    num_parallel_calls=tf.data.AUTOTUNE,
  )
  for index, audio, kept, error in dataset.as_numpy_iterator():
    yield waiting.pop(int(index)), audio, kept, error.decode()


def _frames(audio):
  """Audio [T] -> frames [T / 160, 160], what is left over dropped."""
  return audio[: len(audio) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)


def _join(pending, audio, phones, speaker, writer):
  """Adds a recording to those of its speaker that are not yet enough for a stretch."""
  pending.append((audio, phones))
  if sum(len(part) for part, _ in pending) < _STRETCH_SAMPLES:
    return
  audio, phones = (np.concatenate(parts) for parts in zip(*pending, strict=True))
  num_frames, num_stretches = _STRETCH_SAMPLES // FRAME_SAMPLES, len(audio) // _STRETCH_SAMPLES
  for index in range(num_stretches):
    stretch = audio[index * _STRETCH_SAMPLES : (index + 1) * _STRETCH_SAMPLES]
    writer.add(stretch, phones[index * num_frames : (index + 1) * num_frames], speaker, "")
  pending[:] = [(audio[num_stretches * _STRETCH_SAMPLES :], phones[num_stretches * num_frames :])]


def _fill_up(pending, speaker, writer):
  """Makes the last stretch of a speaker of what is left over, over and over: no voice is without one.

  Less than a second is dropped.
  """
  audio, phones = (np.concatenate(parts) for parts in zip(*pending, strict=True))
  if len(audio) >= SAMPLE_RATE_HZ:
    num_frames = _STRETCH_SAMPLES // FRAME_SAMPLES
    frames = np.resize(np.arange(len(phones)), num_frames)
    writer.add(_frames(audio)[frames].reshape(-1), phones[frames], speaker, "")


class _Shards:
  """Writes the records of a split, so many to a file."""

  def __init__(self, folder, split):
    self._folder, self._split = folder, split
    self._records, self._num_samples, self._shards = [], 0, []

  def add(self, audio, phones, speaker, name):
    feature = {
      "audio": tf.train.Feature(bytes_list=tf.train.BytesList(value=[to_int16(audio).tobytes()])),
      "speaker": tf.train.Feature(int64_list=tf.train.Int64List(value=[speaker])),
      "phones": tf.train.Feature(bytes_list=tf.train.BytesList(value=[phones.astype("<i2").tobytes()])),
      "name": tf.train.Feature(bytes_list=tf.train.BytesList(value=[name.encode()])),
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
    written = write_shard(self._folder / f"{self._split}-{len(self._shards):05d}.tfrecord", self._records)
    self._shards.append({"split": self._split, "num_samples": self._num_samples, **written})
    self._records, self._num_samples = [], 0


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
