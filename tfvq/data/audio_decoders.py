"""Decodes audio files with libsndfile, the default backend of `tfvq.data.audio_files`.

A decoder has `rate_hz`, `num_channels`, `num_frames` and `read(start, stop)`. A frame is one sample of each channel.
"""

import contextlib

import numpy as np

from tfvq.data.audio_headers import checked, flac_of_unknown_length
from tfvq.errors import UserError
from tfvq.extras import extra
from tfvq.startup import stderr_without

with extra("speech"):
  import soundfile

_BLOCK_SAMPLES = 2**18
_KEPT_SECONDS = 10  # of the audio decoded last, because consecutive reads overlap
_MPG123_LINES = rb"\[src/libmpg123/.*\n"  # libsndfile's MP3 decoder prints its errors
_MAX_FRAMES = 2**40  # libsndfile reports more if the length is unknown


class _ForwardFile(soundfile.SoundFile):
  """Skips the needless seek with which `SoundFile` ends each read."""

  def seekable(self):
    return False


class SoundfileDecoder:
  """A WAV, FLAC, MP3 or Ogg file, decoded in parts.

  libsndfile seeks exactly in WAV and FLAC files, but not in MP3 and Ogg files. Those are decoded forwards; to read a
  part far before the last one, decoding starts again from the beginning.

  Args:
    file: The file, binary and seekable; it must stay open.
    name: Its name, for errors.

  Raises:
    UserError: It cannot be decoded.
  """

  def __init__(self, file, name: str):
    self._name = name
    self.kind, self.stream = checked(file, name)
    self._open()
    if self.kind == "flac":
      self._ignore_short_length()
    self.rate_hz, self.num_channels, self.num_frames = self._file.samplerate, self._file.channels, self._file.frames
    self.subtype = self._file.subtype
    length_is_known = self.num_frames < _MAX_FRAMES
    compressed = "ADPCM" in self.subtype or "GSM" in self.subtype
    self._seeks_exactly = self.kind in ("wav", "flac") and length_is_known and not compressed
    if not length_is_known:
      self.num_frames = self.count_frames()

  def read(self, start: int, stop: int) -> np.ndarray:
    """Frames `start` to `stop`, float32 [stop - start, num_channels].

    Raises:
      UserError: They cannot be decoded.
    """
    if not self._position - len(self._kept) <= start <= self._position:
      if self._seeks_exactly:
        self._seek(start)
      elif start < self._position:
        self._open()
    num_kept = stop - start + (0 if self._seeks_exactly else _KEPT_SECONDS * self.rate_hz)
    while self._position < stop:
      block = self._decode(stop - self._position)
      if not len(block):
        raise self._damaged()
      self._kept = np.concatenate([self._kept, block])[-num_kept:]
    offset = self._position - len(self._kept)
    return self._kept[start - offset : stop - offset]

  def count_frames(self) -> int:
    """Counts the frames that can be decoded, at most as many as the header claims.

    Raises:
      UserError: They cannot be decoded.
    """
    self._open()
    while self._position < self.num_frames and len(self._decode(_BLOCK_SAMPLES)):
      pass
    num_frames = self._position
    self._open()
    return num_frames

  def _open(self):
    self.stream.seek(0)
    try:
      with self._quietly():
        self._file = _ForwardFile(self.stream)
    except soundfile.SoundFileError as error:
      raise UserError(f"{self._name} is not a WAV, FLAC, MP3 or Ogg Vorbis file that can be decoded.") from error
    self._position, self._kept = 0, np.zeros([0, self._file.channels], np.float32)

  def _ignore_short_length(self):
    """Decodes a FLAC file to its end, even if its header claims fewer samples than there are."""
    stream = flac_of_unknown_length(self.stream)
    with contextlib.suppress(soundfile.SoundFileError):  # raised if the file has no sample at this position
      _ForwardFile(stream).seek(self._file.frames)
      self.stream = stream
    self._open()

  def _seek(self, position):
    try:
      self._position = self._file.seek(position)
    except soundfile.SoundFileError as error:
      raise self._damaged() from error
    self._kept = self._kept[:0]

  def _decode(self, num_frames):
    """Decodes at most `num_frames` more frames; none are left if it returns none."""
    try:
      num_frames = min(num_frames, max(1, _BLOCK_SAMPLES // self.num_channels))
      with self._quietly():
        block = self._file.read(num_frames, dtype="float32", always_2d=True)
    except soundfile.SoundFileError as error:
      raise self._damaged() from error
    self._position += len(block)
    return block

  def _quietly(self):
    return stderr_without(_MPG123_LINES) if self.kind == "mp3" else contextlib.nullcontext()

  def _damaged(self):
    return UserError(f"{self._name} is truncated or damaged: it could not be decoded to its end.")
