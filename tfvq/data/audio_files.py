"""Reads audio files as mono of a given sample rate, and writes WAV files."""

import functools
import os
import pathlib
import wave
from collections.abc import Iterator

import numpy as np

from tfvq.data.audio_decoders import SoundfileDecoder
from tfvq.errors import UserError
from tfvq.extras import extra
from tfvq.files import atomic_write

with extra("speech"):
  import soxr

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")

_RATES_HZ = (1000, 768_000)
_PART_SECONDS = 10
_MARGIN_SECONDS = 0.1  # read after a part, so that its end is resampled as in the whole file
_BLOCK_SAMPLES = 2**20
_MAX_VALUE = 2.0**31  # files of floats may contain the values of 32-bit integers

_PROBE_SECONDS = 10  # of audio that is not digital silence
_MAX_PROBE_SECONDS = 60
_MIN_POWER_RATIO = 0.01  # of the averaged channels to the single ones


class AudioReader:
  """A WAV, FLAC, MP3 or Ogg file of any number of channels and a sample rate of 1 to 768 kHz.

  Channels are averaged and the audio is resampled to `sample_rate_hz`. If averaging would cancel nearly all sound, as
  with two channels of opposite sign, the first channel with sound is used instead. This is decided once per file, from
  the first ten seconds that are not digital silence within its first minute.

  A part can be read without loading the rest, so that a long file needs no more memory than a short one. Readers share
  no state: several threads may each use their own.

  Args:
    source: The path of a file, or an open binary file that can seek.
    sample_rate_hz: Sample rate to read it at; an attribute, which may be changed.
    name: Name of an open file in error messages.
    backend: "soundfile", or "tensorflow_io", which also reads remote paths such as gs:// but loads whole files.

  Raises:
    UserError: There is no such file, it cannot be decoded, or it holds no samples.
    ValueError: There is no such backend.
  """

  def __init__(self, source, sample_rate_hz: int = 16_000, name: str = "standard input", backend: str = "soundfile"):
    if backend not in ("soundfile", "tensorflow_io"):
      raise ValueError(f"There is no backend {backend!r}: choose soundfile or tensorflow_io.")
    if backend == "tensorflow_io":
      from tfvq.data import tensorflow_io_decoder  # an optional package

      open_file, decoder = tensorflow_io_decoder.open_file, tensorflow_io_decoder.TensorflowIoDecoder
    else:
      open_file, decoder = _open_file, SoundfileDecoder
    is_path = isinstance(source, str | os.PathLike)
    self.sample_rate_hz = sample_rate_hz
    self.name = os.fspath(source) if is_path else name
    self._decoder = decoder(open_file(source) if is_path else source, self.name)
    if not self._decoder.num_frames:
      raise UserError(f"{self.name} holds no samples.")
    if not _RATES_HZ[0] <= self._decoder.rate_hz <= _RATES_HZ[1]:
      raise UserError(
        f"{self.name} has a sample rate of {self._decoder.rate_hz} Hz; {_RATES_HZ[0]} to {_RATES_HZ[1]} Hz can be read."
      )

  @property
  def num_samples(self) -> int:
    """Length in samples at `sample_rate_hz`."""
    return max(1, self._decoder.num_frames * self.sample_rate_hz // self._decoder.rate_hz)

  def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Samples `start` to `stop` at `sample_rate_hz` (to the end if None), float32 [T].

    They are in -1..1, except that samples stored as floats may exceed it.

    Raises:
      UserError: They cannot be decoded, or are not all finite numbers.
    """
    stop = self.num_samples if stop is None else min(stop, self.num_samples)
    rate_hz, to_rate_hz = self._decoder.rate_hz, self.sample_rate_hz
    # Parts begin at whole seconds, where samples of both rates coincide, and one second before if they are resampled.
    first_second = max(0, start // to_rate_hz - (rate_hz != to_rate_hz))
    file_stop = int(np.ceil((stop / to_rate_hz + _MARGIN_SECONDS) * rate_hz))
    samples = self._read_mono(first_second * rate_hz, min(file_stop, self._decoder.num_frames))
    offset = first_second * to_rate_hz
    samples = resampled(samples, rate_hz, to_rate_hz)[start - offset : stop - offset]
    return np.pad(samples, [0, stop - start - len(samples)])

  def parts(self) -> Iterator[np.ndarray]:
    """All samples, ten seconds at a time, float32 [T] each; raises the errors of `read`."""
    part_samples = _PART_SECONDS * self.sample_rate_hz
    for start in range(0, self.num_samples, part_samples):
      yield self.read(start, start + part_samples)

  def _read_mono(self, start, stop):
    channel, block_frames = self._channel, max(1, _BLOCK_SAMPLES // self._decoder.num_channels)
    blocks = [np.zeros(0, np.float32)]
    for position in range(start, stop, block_frames):
      frames = self._read_frames(position, min(stop, position + block_frames))
      blocks.append(frames.mean(axis=1, dtype=np.float32) if channel is None else frames[:, channel].copy())
    return np.concatenate(blocks)

  def _read_frames(self, start, stop):
    frames = self._decoder.read(start, min(stop, self._decoder.num_frames))
    if not (np.abs(frames) <= _MAX_VALUE).all():
      raise UserError(f"{self.name} holds samples that are not finite numbers of at most 2^31.")
    return frames

  @functools.cached_property
  def _channel(self):
    """The channel to use, or None to average all channels."""
    decoder = self._decoder
    if decoder.num_channels == 1:
      return 0
    mean_power, powers, num_seconds = 0.0, np.zeros(decoder.num_channels), 0
    for start in range(0, min(decoder.num_frames, _MAX_PROBE_SECONDS * decoder.rate_hz), decoder.rate_hz):
      frames = self._read_frames(start, start + decoder.rate_hz).astype(np.float64)
      mean_power += np.square(frames.mean(axis=1)).sum()
      powers += np.square(frames).sum(axis=0)
      num_seconds += frames.any()
      if num_seconds == _PROBE_SECONDS:
        break
    if mean_power >= _MIN_POWER_RATIO * powers.mean():
      return None
    return int(np.argmax(powers >= powers.max() / 2))


def _open_file(path):
  path = pathlib.Path(path)
  try:
    if not path.is_file():
      raise UserError(f"{path} is not a file.")
    return path.open("rb")
  except OSError as error:
    raise UserError(f"{path} could not be read ({error.strerror}).") from error


def write_wav(path, parts, sample_rate_hz: int) -> None:
  """Writes a 16-bit mono WAV file, atomically.

  Args:
    path: The file.
    parts: Iterable of float arrays [T] in -1..1, one after another.
    sample_rate_hz: Their sample rate.
  """
  with atomic_write(path) as temporary:
    write_wav_to(str(temporary), parts, sample_rate_hz)


def write_wav_to(file, parts, sample_rate_hz: int) -> None:
  """Writes the same as `write_wav`, but not atomically, to a path or an open binary file."""
  with wave.open(file, "wb") as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(sample_rate_hz)
    for part in parts:
      file.writeframes(to_int16(part).tobytes())


def resampled(samples: np.ndarray, rate_hz: int, to_rate_hz: int) -> np.ndarray:
  """Resamples audio without delay, float32 [T] -> float32 [T * to_rate_hz / rate_hz]."""
  return samples if rate_hz == to_rate_hz else soxr.resample(samples, rate_hz, to_rate_hz, quality="HQ")


def to_int16(samples) -> np.ndarray:
  """Float samples in -1..1, clipped -> int16, little-endian."""
  return np.round(np.clip(samples, -1, 1) * 32767).astype("<i2")
