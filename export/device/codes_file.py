"""Files of codes: a header, the codes as packed bits, and a checksum of both.

  4 bytes  "TFVQ"
  1        version, 2
  1        bits per code
  8        the model, `SpeechCodec.model_id`
  4        float32: the gain that the speech was multiplied by before it was encoded
  8        number of samples, unsigned
  ...      codes, frame by frame, each in that many bits, the highest bit first
  4        CRC-32 of everything before it

All numbers are little-endian.
"""

import math
import struct
import zlib
from typing import NamedTuple

import numpy as np

from .errors import CodecError

_MAGIC = b"TFVQ"
_VERSION = 2
_HEADER = struct.Struct("<4sBB8sfQ")


class EncodedSpeech(NamedTuple):
  """The content of a file of codes."""

  codes: np.ndarray  # int32 [F, *frame_shape]
  model_id: bytes
  gain: float
  num_samples: int


def pack(speech: EncodedSpeech, num_values: int, hop_samples: int) -> bytes:
  """Packs codes into the bytes of a file.

  Args:
    speech: The content.
    num_values: K, number of codes.
    hop_samples: Samples per frame.

  Raises:
    ValueError: The number of codes does not match the number of samples, or a code is outside 0..K-1.
  """
  codes = np.asarray(speech.codes)
  if len(codes) != -(-speech.num_samples // hop_samples) or (
    len(codes) and not 0 <= codes.min() <= codes.max() < num_values
  ):
    raise ValueError(f"The codes do not match the number of samples, or are not all in 0..{num_values - 1}.")
  num_bits = bits_per_code(num_values)
  bits = (codes.reshape(-1, 1) >> np.arange(num_bits - 1, -1, -1)) & 1
  content = _HEADER.pack(_MAGIC, _VERSION, num_bits, speech.model_id, speech.gain, speech.num_samples)
  content += np.packbits(bits.astype(np.uint8)).tobytes()
  return content + struct.pack("<I", zlib.crc32(content))


def unpack(
  content: bytes, model_id: bytes, num_values: int, hop_samples: int, frame_shape: tuple[int, ...] = ()
) -> EncodedSpeech:
  """Unpacks the bytes of a file.

  Args:
    content: The bytes.
    model_id: Id of the model that will decode the codes; the next three arguments also belong to that model.
    num_values: K, number of codes.
    hop_samples: Samples per frame.
    frame_shape: Shape of a frame's codes.

  Raises:
    CodecError: The bytes are not a file of codes, are truncated or altered, or come from another version or model.
  """
  if content[:4] != _MAGIC:
    raise CodecError("It is not a file of codes.")
  if len(content) < _HEADER.size + 4:
    raise CodecError("It is truncated.")
  _, version, num_bits, made_by, gain, num_samples = _HEADER.unpack_from(content)
  if version != _VERSION:
    raise CodecError(f"It has version {version}, but this program reads version {_VERSION}.")
  if zlib.crc32(content[:-4]) != struct.unpack("<I", content[-4:])[0]:
    raise CodecError("It is truncated or altered: its checksum does not match.")
  if made_by != model_id:
    raise CodecError("It was made with another model: name that model with --model.")
  packed = np.frombuffer(content[_HEADER.size : -4], np.uint8)
  num_codes = -(-num_samples // hop_samples) * math.prod(frame_shape)
  if num_bits != bits_per_code(num_values) or len(packed) != -(-num_codes * num_bits // 8) or not 0 < gain < np.inf:
    raise CodecError("It is altered: its header does not match what follows.")
  bits = np.unpackbits(packed, count=num_codes * num_bits).reshape(num_codes, num_bits)
  codes = bits.astype(np.int32) @ (1 << np.arange(num_bits - 1, -1, -1, dtype=np.int32))
  if num_codes and codes.max() >= num_values:
    raise CodecError(f"It holds codes outside 0..{num_values - 1}.")
  return EncodedSpeech(codes.reshape(-1, *frame_shape), model_id, gain, num_samples)


def bits_per_code(num_values: int) -> int:
  """Number of bits of a packed code."""
  return max(1, (num_values - 1).bit_length())
