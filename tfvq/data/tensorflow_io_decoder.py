"""Decodes audio files with tensorflow-io, the second backend of `tfvq.data.audio_files`.

This is the only module that imports tensorflow-io. It loads whole files from any of TensorFlow's file systems, and uses
stateless operations only: all `AudioIOTensor`s share one C++ object, which may return the samples of another file.
"""

import io

import numpy as np
import tensorflow as tf

from tfvq.data.audio_decoders import SoundfileDecoder
from tfvq.errors import UserError

_TYPES = {"PCM_U8": tf.uint8, "PCM_16": tf.int16, "PCM_24": tf.int32, "PCM_32": tf.float32, "FLOAT": tf.float32}
_MAX_BYTES = 2**31 - 1


def open_file(path) -> io.BytesIO:
  """Reads a local or remote file.

  Raises:
    UserError: It cannot be read.
  """
  try:
    with tf.io.gfile.GFile(path, "rb") as file:
      return io.BytesIO(file.read())
  except (tf.errors.OpError, OSError) as error:
    raise UserError(f"{path} is not a file that can be read: {' '.join(str(error).split())[:200]}") from error


class TensorflowIoDecoder:
  """A WAV, FLAC, MP3 or Ogg Vorbis file, decoded as a whole; see `SoundfileDecoder`, which reads the header.

  Args:
    file: The file, binary and seekable.
    name: Its name, for errors.

  Raises:
    UserError: It cannot be decoded, or tensorflow-io cannot be loaded.
  """

  def __init__(self, file, name: str):
    audio = _tensorflow_io().audio
    header = SoundfileDecoder(file, name)
    self.rate_hz, self.num_channels, self.num_frames = header.rate_hz, header.num_channels, header.num_frames
    header.stream.seek(0)
    content = header.stream.read()
    if len(content) > _MAX_BYTES:
      raise UserError(f"{name} has 2 GiB or more, which tensorflow-io cannot decode: use the backend soundfile.")
    # tensorflow-io allocates memory for the length that a header claims, and never returns for some wrong ones.
    if header.count_frames() != header.num_frames:
      raise UserError(f"{name} is truncated or damaged: it could not be decoded to its end.")
    try:
      frames = _decode(audio, header, content, name)
    except NotImplementedError as error:  # tensorflow-io loads its library on first use
      raise _not_loaded() from error
    except tf.errors.OpError as error:
      raise UserError(f"{name} could not be decoded by tensorflow-io: use the backend soundfile.") from error
    if frames.shape != (self.num_frames, self.num_channels):
      raise UserError(f"{name} could not be decoded to its end by tensorflow-io: use the backend soundfile.")
    self._frames = frames

  def read(self, start: int, stop: int) -> np.ndarray:
    """Frames `start` to `stop`, float32 [stop - start, num_channels]."""
    return self._frames[start:stop]


def _decode(audio, header, content, name):
  """All frames, float32 [T, C]."""
  kind, subtype = header.kind, header.subtype
  if (kind, subtype) == ("ogg", "VORBIS"):
    return audio.decode_vorbis(content).numpy()
  if kind == "mp3":
    return audio.decode_mp3(content).numpy()
  if kind not in ("wav", "flac") or subtype not in _TYPES or content[:4] == b"RIFX":
    raise UserError(f"{name} holds {subtype} samples, which tensorflow-io cannot decode: use the backend soundfile.")
  if kind == "flac":
    frames = audio.decode_flac(_with_length(content, header.num_frames), dtype=_TYPES[subtype]).numpy()
  else:
    frames = audio.decode_wav(content, dtype=_TYPES[subtype]).numpy()
  if subtype == "PCM_32":  # returned as floats with the same bits
    frames = frames.view(np.int32)
  if subtype == "PCM_U8":
    return (frames.astype(np.float32) - 128) / 128
  return frames.astype(np.float32) if subtype == "FLOAT" else frames / np.float32(-np.iinfo(frames.dtype).min)


def _with_length(content, num_frames):
  """Writes the length of a FLAC file into its header, where zero means that it is unknown."""
  fields = int.from_bytes(content[18:26], "big") >> 36 << 36 | num_frames
  return content[:18] + fields.to_bytes(8, "big") + content[26:]


def _tensorflow_io():
  try:
    import tensorflow_io
  except Exception as error:  # a library built for another TensorFlow raises many kinds of exceptions
    raise _not_loaded() from error
  return tensorflow_io


def _not_loaded():
  return UserError(
    "The backend tensorflow_io could not be loaded: install the versions of requirements.txt, or use the backend "
    "soundfile."
  )
