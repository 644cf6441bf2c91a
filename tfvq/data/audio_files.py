"""Audio files of many kinds, read as 16 kHz mono; the one place where tensorflow-io is used."""

import functools
import logging
import os
import pathlib
import struct
import threading
import wave

import numpy as np
import tensorflow as tf

from tfvq.errors import UserError
from tfvq.files import atomic_write

SAMPLE_RATE_HZ = 16_000
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")

_MARGIN_SECONDS = 0.1  # read beside a part that is to be resampled, so that its ends sound as in the whole

_TRACING = threading.Lock()


class AudioReader:
  """A WAV, FLAC, MP3 or Ogg Vorbis file of any sample rate and number of channels.

  Channels are averaged and the audio is resampled. Parts are read without the rest, so that a long file needs no more
  memory than a short one.

  Args:
    path: The file.

  Raises:
    UserError: There is no such file, it cannot be decoded, or it holds no samples.
  """

  def __init__(self, path):
    self.path = pathlib.Path(path)
    if not self.path.is_file():
      raise UserError(f"{self.path} is not a file.")
    try:
      # As bytes: not all names are UTF-8.
      self._audio = _tensorflow_io().audio.AudioIOTensor(os.fsencode(self.path))
      self._file_rate_hz = int(self._audio.rate)
      self._num_file_samples = int(self._audio.shape[0])
    except tf.errors.OpError as error:
      raise UserError(
        f"{self.path} is not a WAV, FLAC, MP3 or Ogg Vorbis file that can be decoded; of WAV files those can that have "
        "8 to 32 bits or 32-bit floats, and say how long they are."
      ) from error
    if not self._num_file_samples or self._file_rate_hz <= 0:
      raise UserError(f"{self.path} holds no samples.")
    self._holds_int32 = _is_int32_wav(self.path)

  @property
  def num_samples(self) -> int:
    """Length in samples at 16 kHz."""
    return max(1, self._num_file_samples * SAMPLE_RATE_HZ // self._file_rate_hz)

  def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Samples `start` to `stop` (16 kHz; the end if None), float32 [T] in -1..1.

    Raises:
      UserError: They cannot be decoded, or are not all finite numbers.
    """
    stop = self.num_samples if stop is None else min(stop, self.num_samples)
    ratio = self._file_rate_hz / SAMPLE_RATE_HZ
    # Parts begin at whole seconds, where samples of both rates coincide, and one second before if they are resampled.
    first_second = max(0, start // SAMPLE_RATE_HZ - (ratio != 1))
    file_start = first_second * self._file_rate_hz
    file_stop = min(
      self._num_file_samples, int(np.ceil((stop / SAMPLE_RATE_HZ + _MARGIN_SECONDS) * self._file_rate_hz))
    )
    try:
      samples = self._audio[file_start:file_stop]
    except tf.errors.OpError as error:
      raise UserError(f"{self.path} breaks off or is damaged: it could not be decoded to its end.") from error
    samples = _to_float(samples, self._holds_int32)
    if not np.isfinite(samples).all():
      raise UserError(f"{self.path} holds samples that are not finite numbers.")
    samples = np.mean(samples, axis=1, dtype=np.float32)
    if ratio != 1:
      samples = resampled(samples, self._file_rate_hz)
    offset = first_second * SAMPLE_RATE_HZ
    samples = samples[start - offset : stop - offset]
    return np.pad(samples, [0, stop - start - len(samples)])


def write_wav(path, parts) -> None:
  """Writes 16-bit mono WAV at 16 kHz, whole or not at all.

  Args:
    path: The file.
    parts: Iterable of float arrays [T] in -1..1, one after another.
  """
  with atomic_write(path) as temporary:
    write_wav_to(str(temporary), parts)


def write_wav_to(file, parts) -> None:
  """Writes what `write_wav` does to a path or an open binary file."""
  with wave.open(file, "wb") as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(SAMPLE_RATE_HZ)
    for part in parts:
      file.writeframes(to_int16(part).tobytes())


def resampled(samples: np.ndarray, rate_hz: int) -> np.ndarray:
  """Audio of a sample rate, float32 [T] -> the same at 16 kHz."""
  if rate_hz == SAMPLE_RATE_HZ:
    return samples
  return _resampler(rate_hz)(samples[:, np.newaxis]).numpy()[:, 0]


@functools.cache
def _resampler(rate_hz):
  """The resampling of one rate as a graph: called as it is, tensorflow-io makes one anew for every recording."""
  tensorflow_io = _tensorflow_io()

  @tf.function(input_signature=[tf.TensorSpec([None, 1], tf.float32)])
  def resample(samples):
    return tensorflow_io.audio.resample(samples, rate_hz, SAMPLE_RATE_HZ)

  logger = tf.get_logger()
  with _TRACING:
    level = logger.level
    logger.setLevel(logging.ERROR)  # or it warns of a loop over the one item of the batch
    try:
      resample.get_concrete_function()
    finally:
      logger.setLevel(level)
  return resample


def to_int16(samples) -> np.ndarray:
  """Float samples in -1..1, clipped -> int16, little-endian."""
  return np.round(np.clip(samples, -1, 1) * 32767).astype("<i2")


def _to_float(samples, holds_int32):
  if holds_int32:
    samples = tf.bitcast(samples, tf.int32)
  samples = samples.numpy()
  if samples.dtype == np.uint8:
    return (samples.astype(np.float32) - 128) / 128
  if np.issubdtype(samples.dtype, np.integer):
    return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
  return samples


def _is_int32_wav(path):
  """Whether a file is a WAV of 32-bit integers, which tensorflow-io hands out as if they were floats."""
  with open(path, "rb") as file:
    riff = file.read(12)
    if riff[:4] != b"RIFF" or riff[8:] != b"WAVE":
      return False
    while len(header := file.read(8)) == 8 and header[:4] != b"fmt ":
      length = struct.unpack("<I", header[4:])[0]
      file.seek(length + length % 2, os.SEEK_CUR)
    fields = file.read(26)
  if len(fields) < 16:
    return False
  format_tag, bits = struct.unpack_from("<H", fields)[0], struct.unpack_from("<H", fields, 14)[0]
  if format_tag == 0xFFFE and len(fields) == 26:  # extensible: the tag proper comes later
    format_tag = struct.unpack_from("<H", fields, 24)[0]
  return format_tag == 1 and bits == 32


def _tensorflow_io():
  try:
    import tensorflow_io
  except Exception as error:  # a library built for another TensorFlow fails in many ways
    raise UserError(
      "Reading audio files needs tensorflow-io, which could not be loaded: install the versions of requirements.txt."
    ) from error
  return tensorflow_io
