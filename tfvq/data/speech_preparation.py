"""Makes a corpus from recordings: shortens silences, equalises levels, splits by sentence, writes shards."""

import collections
import concurrent.futures
import hashlib
import os
import pathlib

import numpy as np
import tqdm

from tfvq.data.shards import write_shard
from tfvq.data.speech_corpus import SEGMENT_SECONDS, SPLITS, VERSION, to_record
from tfvq.errors import UserError
from tfvq.files import write_json
from tfvq.ops.loudness import FRAMES_PER_SECOND, frame_powers, gain_to_level, is_sounding

_PAUSE_FRAMES = 5  # of silence kept before and after sound: no pause is longer than twice this
_LEAST_SECONDS = 0.1
_SEGMENT_FRAMES = SEGMENT_SECONDS * FRAMES_PER_SECOND
_SHARD_SAMPLES = 40_960_000  # 82 MB


def prepare_corpus(folder, recordings, sample_rate_hz: int) -> None:
  """Reads, prepares and writes recordings.

  Recordings that cannot be read are left out, reported, and listed in the manifest, which is written last.

  Args:
    folder: Folder to write.
    recordings: `tfvq.data.speech_sources.Recording`s, a sized iterable.
    sample_rate_hz: Their sample rate, a multiple of 100.

  Raises:
    UserError: No recording can be read, a split is empty, or the folder cannot be written.
  """
  folder = pathlib.Path(folder)
  speakers, phones = [], []  # in order of appearance
  writers = {split: _Shards(folder, split) for split in SPLITS}
  joined = collections.defaultdict(list)
  skipped, labelled = [], None  # the first recording decides whether the corpus has phones
  progress = tqdm.tqdm(total=len(recordings), desc="recordings", unit="recording", dynamic_ncols=True)
  for recording, audio, said, kept, error in _read(recordings, sample_rate_hz):
    progress.update()
    if error:
      skipped.append(f"{recording.name}: {error}")
      continue
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
      _join(joined[speaker], _frames(audio, sample_rate_hz), frames, speaker, writers[split])
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
        f"There are too few recordings: none of the {len(recordings)} is in the split {split!r}; give 60 or more, or "
        "cut long ones into sentences."
      )
  manifest = {"version": VERSION, "sample_rate_hz": sample_rate_hz, "speakers": speakers, "phones": phones}
  write_json(folder / "manifest.json", {**manifest, "skipped": skipped, "shards": shards})


def split_of(sentence: str) -> str:
  """The split of a sentence, the same for all speakers: one in 12 is held out, one in 24 is for validation."""
  place = int(hashlib.sha256(sentence.encode()).hexdigest()[:8], 16) % 24
  return "held_out" if place < 2 else "validation" if place == 2 else "train"


def frames_to_keep(audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
  """Which frames of 10 ms to keep, float [T] -> bool [N]: cuts silences to 0.1 s, and to 0.05 s at the ends."""
  sounding = is_sounding(frame_powers(_frames(audio, sample_rate_hz).reshape(-1), sample_rate_hz))
  if not len(sounding):
    return sounding
  return np.convolve(sounding, np.ones(2 * _PAUSE_FRAMES + 1), mode="full")[_PAUSE_FRAMES:-_PAUSE_FRAMES] > 0


def phone_frames(phones, num_frames: int, names: list[str]) -> np.ndarray:
  """Describes the phone in each frame of a recording.

  Args:
    phones: Pairs (end in seconds, name), one after another; the last one lasts to the end of the recording.
    num_frames: N, frames of 10 ms.
    names: Names of the known phones; new ones are appended.

  Returns:
    int32 [N, 5]: ids of the phone, the previous one and the next one, the position of the frame in the phone in
    percent, and the length of the phone in frames. [N, 0] if there are no phones.
  """
  if not phones:
    return np.zeros([num_frames, 0], np.int32)
  names += sorted({name for _, name in phones} - set(names))
  ids = np.array([names.index(name) for _, name in phones])
  ends = np.array([round(end * FRAMES_PER_SECOND) for end, _ in phones])
  begins, ends = np.concatenate([[0], ends[:-1]]), np.concatenate([ends[:-1], [max(num_frames, ends[-1])]])
  place = np.minimum(np.searchsorted(ends, np.arange(num_frames), side="right"), len(ids) - 1)
  lengths = np.maximum(ends - begins, 1)[place]
  position = 100 * (np.arange(num_frames) - begins[place]) // lengths
  neighbours = [ids[place], ids[np.maximum(place - 1, 0)], ids[np.minimum(place + 1, len(ids) - 1)]]
  return np.stack([*neighbours, position, lengths], axis=1).astype(np.int32)


def level(audio: np.ndarray, sample_rate_hz: int) -> np.ndarray:
  """Scales audio, float [T] -> float32 [T], to the common level, or lower if samples would clip."""
  largest = np.max(np.abs(audio), initial=0.0)
  return (audio * min(gain_to_level(frame_powers(audio, sample_rate_hz)), 0.98 / max(largest, 1e-6))).astype(np.float32)


def _read(recordings, sample_rate_hz):
  """Reads and prepares recordings, several at a time, in order.

  Yields:
    `(recording, audio, phones, mask of the frames that are kept, error message or "")`.
  """
  num_threads = os.cpu_count() or 1
  pending = collections.deque()
  executor = concurrent.futures.ThreadPoolExecutor(num_threads)
  try:
    for recording in recordings:
      pending.append((recording, executor.submit(_read_one, recording, sample_rate_hz)))
      if len(pending) > 2 * num_threads:  # bounds the memory
        recording, future = pending.popleft()
        yield recording, *future.result()
    while pending:
      recording, future = pending.popleft()
      yield recording, *future.result()
  finally:
    executor.shutdown(cancel_futures=True)


def _read_one(recording, sample_rate_hz):
  try:
    audio, phones = recording.read()
  except UserError as error:
    return np.zeros(0, np.float32), (), np.zeros(0, bool), str(error)
  kept = frames_to_keep(audio, sample_rate_hz)
  audio = level(_frames(audio, sample_rate_hz)[kept].reshape(-1), sample_rate_hz)
  is_long = len(audio) >= _LEAST_SECONDS * sample_rate_hz
  return audio, phones, kept, "" if is_long else "it is shorter than 0.1 s, or silent"


def _frames(audio, sample_rate_hz):
  """Audio [T] -> frames of 10 ms, [N, S]; the remainder is dropped."""
  frame_samples = sample_rate_hz // FRAMES_PER_SECOND
  return audio[: len(audio) // frame_samples * frame_samples].reshape(-1, frame_samples)


def _join(pending, audio, phones, speaker, writer):
  """Adds the frames of a recording to a speaker's pending ones, and writes the segments that they fill."""
  pending.append((audio, phones))
  if sum(len(part) for part, _ in pending) < _SEGMENT_FRAMES:
    return
  audio, phones = (np.concatenate(parts) for parts in zip(*pending, strict=True))
  end = len(audio) // _SEGMENT_FRAMES * _SEGMENT_FRAMES
  for start in range(0, end, _SEGMENT_FRAMES):
    segment = slice(start, start + _SEGMENT_FRAMES)
    writer.add(audio[segment].reshape(-1), phones[segment], speaker, "")
  pending[:] = [(audio[end:], phones[end:])]


def _fill_up(pending, speaker, writer):
  """Repeats a speaker's pending frames to fill a last segment, so that every speaker has one.

  Less than a second is dropped.
  """
  audio, phones = (np.concatenate(parts) for parts in zip(*pending, strict=True))
  if len(audio) >= FRAMES_PER_SECOND:
    frames = np.resize(np.arange(len(audio)), _SEGMENT_FRAMES)
    writer.add(audio[frames].reshape(-1), phones[frames], speaker, "")


class _Shards:
  """Writes the records of a split into files of about equal length."""

  def __init__(self, folder, split):
    self._folder, self._split = folder, split
    self._records, self._num_samples, self._shards = [], 0, []

  def add(self, audio, phones, speaker, name):
    self._records.append(to_record(audio, phones, speaker, name))
    self._num_samples += len(audio)
    if self._num_samples >= _SHARD_SAMPLES:
      self._write()

  def finish(self):
    if self._records:
      self._write()
    return self._shards

  def _write(self):
    written = write_shard(self._folder / f"{self._split}-{len(self._shards):05d}.tfrecord", self._records)
    self._shards.append({"split": self._split, "num_samples": self._num_samples, **written})
    self._records, self._num_samples = [], 0
