"""Detects the format of an audio file, checks its header, and corrects what decoders would misread."""

import io
import os
import re
from typing import NamedTuple

from tfvq.data import mp3_frames, wav_header
from tfvq.errors import UserError


class CheckedFile(NamedTuple):
  """An audio file that is safe to decode."""

  kind: str  # "wav", "flac", "ogg" or "mp3"
  stream: io.IOBase  # binary, seekable, at its beginning


class _Spliced(io.RawIOBase):
  """A header in memory, followed by a part of a file."""

  def __init__(self, head, file, start, stop):
    super().__init__()
    self._head, self._file = head, file
    self._start, self._stop = start, stop
    self._position = 0

  def readable(self):
    return True

  def seekable(self):
    return True

  def seek(self, offset, whence=os.SEEK_SET):
    base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._head) + self._stop - self._start}
    self._position = max(0, base[whence] + offset)
    return self._position

  def tell(self):
    return self._position

  def readinto(self, buffer):
    view, head = memoryview(buffer).cast("B"), self._head[self._position : self._position + len(buffer)]
    view[: len(head)] = head
    self._position += len(head)
    place = self._start + self._position - len(self._head)
    num_bytes = max(0, min(len(view) - len(head), self._stop - place))
    if num_bytes:
      self._file.seek(place)
      num_bytes = self._file.readinto(view[len(head) : len(head) + num_bytes])
      self._position += num_bytes
    return len(head) + num_bytes


def checked(file, name: str) -> CheckedFile:
  """Checks a WAV, FLAC, Ogg or MP3 file.

  Args:
    file: The file, binary and seekable; it must stay open.
    name: Its name, for errors.

  Raises:
    UserError: It is not such a file, is truncated or damaged, or contains several concatenated recordings.
  """
  position = _skip_tags(file)
  file.seek(position)
  magic = file.read(12)
  if magic[:4] in wav_header.MAGICS and magic[8:] == b"WAVE":
    parts = wav_header.plain_header(file, name)
    return CheckedFile("wav", _rewound(file) if parts is None else _Spliced(parts[0], file, *parts[1:]))
  if magic[:4] == b"fLaC":
    _check_nothing_follows(file, name, position + 4, rb"fLaC[\x00\x80]\x00\x00\x22")
    return CheckedFile("flac", _Spliced(b"", file, position, file.seek(0, os.SEEK_END)))
  if magic[:4] == b"OggS":
    _check_pages(file, name)
    return CheckedFile("ogg", _rewound(file))
  parts = mp3_frames.counted_header(file, name, position)
  if parts is None:
    raise UserError(f"{name} is not a WAV, FLAC, MP3 or Ogg Vorbis file.")
  return CheckedFile("mp3", _Spliced(parts[0], file, *parts[1:]))


def flac_of_unknown_length(stream) -> io.IOBase:
  """A FLAC stream without the number of samples in its header, which may be wrong."""
  stream.seek(0)
  head = bytearray(stream.read(26))
  head[21] &= 0xF0  # the number has 36 bits
  head[22:26] = bytes(4)
  return _Spliced(bytes(head), stream, 26, stream.seek(0, os.SEEK_END))


def _rewound(file):
  file.seek(0)
  return file


def _skip_tags(file):
  """The position after the ID3 tags at the beginning of a file."""
  position = 0
  while True:
    file.seek(position)
    header = file.read(10)
    if header[:3] != b"ID3" or len(header) < 10:
      return position
    size = 0
    for byte in header[6:]:
      size = size << 7 | byte & 0x7F
    position += 10 + size + 10 * (header[5] >> 4 & 1)  # a footer may follow


def _check_pages(file, name):
  """Raises an error if an Ogg file is truncated, or is chained: decoders would read its first stream only."""
  size = file.seek(0, os.SEEK_END)
  position, began = 0, False
  while position < size:
    file.seek(position)
    header = file.read(27)
    if header[:4] != b"OggS":
      _check_nothing_follows(file, name, position, rb"OggS\0")
      return
    position += 27
    if len(header) < 27:
      break
    starts_stream, num_segments = header[5] & 2, header[26]
    if starts_stream and began:
      raise _joined(name)
    began = began or not starts_stream
    position += num_segments + sum(file.read(num_segments))
  if position > size:
    raise UserError(f"{name} is truncated: its last Ogg page is incomplete.")


def _check_nothing_follows(file, name, position, pattern):
  """Raises an error if the first bytes of another recording, a pattern of up to 8 bytes, follow a position."""
  file.seek(position)
  block = b""
  while more := file.read(2**20):
    block = block[-7:] + more
    if re.search(pattern, block):
      raise _joined(name)


def _joined(name):
  return UserError(f"{name} is damaged or is several concatenated files (a chain): convert it to one WAV file.")
