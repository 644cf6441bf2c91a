"""Reads and writes WAV files of 16-bit mono audio, with NumPy only."""

import os
import struct

import numpy as np

from .errors import CodecError

_PCM, _EXTENSIBLE = 1, 0xFFFE
_SUBFORMAT_END = bytes.fromhex("000000001000800000aa00389b71")  # of GUIDs that begin with the tag of a plain format
_STREAM_BYTES = 0x7FFFF000  # programs that write to a pipe claim at least this size, because they do not know it
_LARGEST_BYTES = 2**32 - 1 - 36  # of audio in a file whose whole size has 32 bits


def read_wav(file, name: str, sample_rate_hz: int) -> np.ndarray:
  """Reads 16-bit mono PCM from RIFF, RF64 and WAVE_FORMAT_EXTENSIBLE files, and from streams of unknown length.

  Args:
    file: A binary file that can seek.
    name: Its name in error messages.
    sample_rate_hz: The required sample rate.

  Returns:
    Float32 [T] in -1..1, T > 0.

  Raises:
    CodecError: It is not such a file, or is truncated.
  """

  def refuse(reason):
    raise CodecError(
      f"{name} cannot be encoded because {reason}: give a WAV file of {sample_rate_hz} Hz, mono, 16 bits."
    )

  num_bytes = file.seek(0, os.SEEK_END)
  file.seek(0)
  header = file.read(12)
  if header[:4] not in (b"RIFF", b"RF64", b"BW64") or header[8:] != b"WAVE":
    refuse("it is not a WAV file")
  kind, long_size, audio = b"", 0, None
  for chunk, start, size in _chunks(file, 12, num_bytes):
    if chunk == b"fmt ":
      kind = file.read(min(size, 40))
    elif chunk == b"ds64":
      long_size = int.from_bytes(file.read(16)[8:], "little")
    elif chunk == b"data":
      audio = start, size
      break
  if audio is None:
    refuse("it has no audio data")
  if problem := _problem_of(kind, sample_rate_hz):
    refuse(problem)
  start, size = audio
  num_left = num_bytes - start
  if size == 2**32 - 1 and 0 < long_size < 2**64 - 1:
    size = long_size
  elif (size >= _STREAM_BYTES and size > num_left) or (size == 0 and not _are_chunks(file, start, num_bytes)):
    size = num_left
  if not 2 <= size <= num_left:
    refuse("it is empty or truncated")
  file.seek(start)
  return np.frombuffer(file.read(size - size % 2), "<i2").astype(np.float32) / 2**15


def wav_bytes(samples, sample_rate_hz: int) -> bytes:
  """A WAV file of 16-bit mono PCM.

  Args:
    samples: Float [T], clipped to -1..1.
    sample_rate_hz: Their sample rate.

  Raises:
    CodecError: There are more than a WAV file can contain, 37 hours at 16 kHz.
  """
  audio = np.clip(np.round(samples * 2**15), -(2**15), 2**15 - 1).astype("<i2").tobytes()
  if len(audio) > _LARGEST_BYTES:
    raise CodecError(f"The speech has {len(samples)} samples; a WAV file holds {_LARGEST_BYTES // 2}: decode less.")
  kind = struct.pack("<4sIHHIIHH", b"fmt ", 16, _PCM, 1, sample_rate_hz, 2 * sample_rate_hz, 2, 16)
  return (
    struct.pack("<4sI4s", b"RIFF", 36 + len(audio), b"WAVE") + kind + struct.pack("<4sI", b"data", len(audio)) + audio
  )


def _chunks(file, start, num_bytes):
  """Yields name, position and claimed size of each chunk's body, with the file at that position."""
  while start + 8 <= num_bytes:
    file.seek(start)
    name, size = struct.unpack("<4sI", file.read(8))
    if not all(32 <= letter < 127 for letter in name):
      return
    yield name, start + 8, size
    start += 8 + size + size % 2


def _are_chunks(file, start, num_bytes):
  """Whether only whole chunks follow a position."""
  for _, begin, size in _chunks(file, start, num_bytes):
    start = begin + size + size % 2
  return num_bytes <= start <= num_bytes + 1  # the last byte of padding is often left out


def _problem_of(kind, sample_rate_hz):
  """Why audio with this format chunk cannot be read; empty if it can."""
  if len(kind) < 16:
    return "it does not say what format it has"
  tag, num_channels, rate_hz, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", kind)
  if tag == _EXTENSIBLE and kind[26:] == _SUBFORMAT_END:
    (tag,) = struct.unpack_from("<H", kind, 24)
  if tag != _PCM:
    return f"its samples have format {tag}, not PCM"
  if (rate_hz, num_channels, bits) != (sample_rate_hz, 1, 16):
    return f"it has {rate_hz} Hz, {num_channels} channel{'s' * (num_channels != 1)}, {bits} bits"
  return "" if frame_bytes == 2 else f"its samples take {frame_bytes} bytes each"
