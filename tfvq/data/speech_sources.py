"""Finds recordings of speech or music by the name of their source."""

import os
import pathlib
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from tfvq.data.audio_files import SUFFIXES, AudioReader, resampled
from tfvq.data.debian import unpacked
from tfvq.data.espeak import espeak, sentences
from tfvq.data.piano import find_scores, play
from tfvq.errors import UserError
from tfvq.extras import extra


class Recording(NamedTuple):
  """A recording that has not been read yet."""

  name: str
  speaker: str
  # Returns the audio, float32 [T] in -1..1 at the config's `data.sample_rate_hz`, and (end in seconds, name) of each
  # phone, () if they are unknown. Raises UserError.
  read: Callable[[], tuple[np.ndarray, tuple[tuple[float, str], ...]]]
  sentence: str = ""  # if several speakers say the same: recordings of one sentence are in one split


def find_recordings(data: ConfigDict):
  """Finds the recordings that a config's `data` names; returns a list or another sized iterable.

  Args:
    data: Fields of the data set; `source` is its name.

  Raises:
    UserError: A package or folder is missing or contains no recordings.
  """
  recordings = SOURCES[data.source](data)
  if not len(recordings):
    raise UserError(f"The source {data.source} has no recordings for these fields of config.data: change them.")
  return recordings


def _languages(data, known):
  """The chosen languages of a source."""
  unknown = [language for language in data.languages if language not in known]
  if unknown:
    raise UserError(f"The source {data.source} has no language {unknown[0]!r}; choose from {', '.join(known)}.")
  return data.languages or known


_ASTERISK_RATE_HZ = 16_000  # of G.722
# One woman speaks English and Spanish.
_ASTERISK_SPEAKERS = {"en": "en-es", "es": "en-es", "fr": "fr", "it": "it", "ru": "ru"}


def _asterisk(data):
  """Telephone prompts of professional speakers, 16 kHz G.722 (Debian; CC-BY-SA 3.0, Russian CC-BY 3.0)."""
  with extra("speech"):
    import G722

  def reader(path):
    def read():
      samples = np.asarray(G722.G722(_ASTERISK_RATE_HZ, 64_000).decode(path.read_bytes()), np.float32) / 32768
      return resampled(samples, _ASTERISK_RATE_HZ, data.sample_rate_hz), ()

    return read

  recordings = []
  for language in _languages(data, tuple(_ASTERISK_SPEAKERS)):
    folder = unpacked(f"asterisk-core-sounds-{language}-g722", data.cache) / "usr/share/asterisk/sounds"
    for path in sorted(folder.rglob("*.g722")):
      name = "/".join(path.relative_to(folder).parts[1:]).removesuffix(".g722")
      if not re.search(r"silence/|beep|monkeys", name):
        speaker = _ASTERISK_SPEAKERS[language]
        recordings.append(Recording(f"{language}/{name}", speaker, reader(path), sentence=name))
  return recordings


def _fillets(data):
  """Acted dialogue of two speakers in each of two languages, 22 kHz Ogg Vorbis (Debian's Fish Fillets; GPL-2)."""
  recordings = []
  for language in _languages(data, ("cs", "nl")):
    folder = unpacked(f"fillets-ng-data-{language}", data.cache) / "usr/share/games/fillets-ng/sound"
    for path in sorted(folder.glob(f"*/{language}/*.ogg")):
      fish = re.search(r"-([vm])-", path.name)
      if fish:
        speaker = f"{language}-{'big' if fish[1] == 'v' else 'small'}"
        line = f"{path.parts[-3]}/{path.stem}"
        recordings.append(Recording(f"{language}/{line}", speaker, _file_reader(path, data), sentence=line))
  return recordings


def _festvox_ru(data):
  """Russian sentences read by one man, 16 kHz, with their phones (Debian's festvox-ru; free with attribution)."""
  folder = unpacked("festvox-ru", data.cache) / "usr/share/festival/voices/russian/msu_ru_nsh_clunits"
  return [
    Recording(path.stem, "nsh", _file_reader(path, data, label_path=folder / "lab" / f"{path.stem}.lab"))
    for path in sorted((folder / "wav").glob("*.wav"))
  ]


def _read_phones(path):
  """Reads a label file: lines of (end in seconds, colour, name) after a line with #; no phones if there is no file."""
  if not path.exists():
    return ()
  lines = path.read_text().split("#\n", 1)[-1].splitlines()
  return tuple((float(end), name) for end, _, name in (line.split() for line in lines if line.strip()))


def _folder(data):
  """Audio files below a folder; the name of the sub-folder is the speaker."""
  if not data.folder:
    raise UserError("The source `folder` needs --config.data.folder=DIR.")
  folder = pathlib.Path(data.folder).expanduser()
  if not folder.is_dir():
    raise UserError(f"{folder} is not a folder: give a folder of audio files, with one sub-folder per speaker.")
  recordings = []
  for path in sorted({*folder.glob("*"), *folder.glob("*/**/*")}):  # rglob would not follow links to speakers' folders
    if path.suffix.lower() in SUFFIXES and path.is_file():
      parts = [_readable(part) for part in path.relative_to(folder).with_suffix("").parts]
      speaker = parts[0] if len(parts) > 1 else _readable(folder.resolve().name)
      sentence = "/".join(parts[1:] or parts)
      recordings.append(Recording("/".join(parts), speaker, _file_reader(path, data), sentence=sentence))
  if not recordings:
    raise UserError(f"There is no audio file ({', '.join(SUFFIXES)}) below {folder}.")
  return recordings


def _readable(name):
  """A file name as text, even if it is not UTF-8."""
  return os.fsencode(name).decode("utf-8", "replace")


def _espeak(data):
  """Synthetic speech: each voice says the same sentences."""
  espeak()  # raises an error now if the package is missing

  def reader(voice, sentence):
    def read():
      audio, phones = espeak().say(voice, sentence)
      return resampled(audio, espeak().sample_rate_hz, data.sample_rate_hz), tuple(phones)

    return read

  return [
    Recording(f"{voice}/{sentence}", voice, reader(voice, sentence), sentence)
    for voice in data.voices
    for sentence in sentences(data.num_sentences)
  ]


def _tfds(data):
  """A TFDS set with speech and speakers: `vctk` or `librispeech`; its own test split has no special role."""
  with extra("data"):
    import tensorflow_datasets as tfds  # takes seconds to import: only where it is used

  try:
    builder = tfds.builder(data.name, data_dir=data.data_dir or None)
    builder.download_and_prepare()
  except Exception as error:  # TFDS raises many kinds of exceptions, from a wrong name to a broken connection
    reason = " ".join(str(error).split())[:200]
    raise UserError(
      f"The data set {data.name} is not in {data.data_dir or '~/tensorflow_datasets'} and could not be downloaded: "
      f"{reason}"
    ) from error
  features, splits = builder.info.features, tuple(data.splits) or tuple(builder.info.splits)
  unknown = [split for split in splits if split not in builder.info.splits]
  if unknown:
    raise UserError(
      f"The data set {data.name} has no split {unknown[0]!r}; choose from {', '.join(builder.info.splits)}."
    )
  speaker_key = next((key for key in ("speaker", "speaker_id") if key in features), None)
  if "speech" not in features or not speaker_key:
    raise UserError(f"The data set {data.name} does not contain speech with speakers: choose vctk or librispeech.")
  # TFDS's audio features have a sample rate only if the data set declares it.
  rate_hz = getattr(features["speech"], "sample_rate", None) or data.source_sample_rate_hz
  return _TfdsRecordings(builder, splits, speaker_key, (rate_hz, data.sample_rate_hz))


class _TfdsRecordings:
  """The examples of a TFDS set as recordings, read one at a time during iteration."""

  def __init__(self, builder, splits, speaker_key, rates_hz):
    self._builder, self._splits = builder, splits
    self._speaker_key, self._rates_hz = speaker_key, rates_hz  # of the data set, and the wanted one

  def __len__(self):
    return sum(int(dataset.cardinality()) for dataset in self._datasets())

  def __iter__(self):
    # Some sets have names for the speakers' numbers, others do not.
    speaker_name = getattr(self._builder.info.features[self._speaker_key], "int2str", str)
    for dataset in self._datasets():
      for example in dataset.as_numpy_iterator():
        audio = example["speech"].astype(np.float32) / 32768
        read = lambda audio=audio: (resampled(audio, *self._rates_hz), ())
        name, speaker = example["id"].decode(), speaker_name(example[self._speaker_key])
        yield Recording(name, speaker, read, sentence=example["text"].decode() if "text" in example else "")

  def _datasets(self):
    return [self._builder.as_dataset(split=split) for split in self._splits]


def _piano(data):
  """Scores, played on a sampled piano."""
  return [
    Recording(f"{score.parent.name}/{score.stem}", "piano", lambda score=score: (play(score, data.sample_rate_hz), ()))
    for score in find_scores(data.composers)
  ]


def _file_reader(path, data, label_path=None):
  return lambda: (AudioReader(path, data.sample_rate_hz).read(), _read_phones(label_path) if label_path else ())


SOURCES = {
  "asterisk": _asterisk,
  "espeak": _espeak,
  "festvox_ru": _festvox_ru,
  "fillets": _fillets,
  "folder": _folder,
  "piano": _piano,
  "tfds": _tfds,
}

# Sources whose recordings come with their phones.
WITH_PHONES = ("espeak", "festvox_ru")
