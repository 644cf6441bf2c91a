"""Checks the header of a WAV file and replaces it by a plain one.

Decoders interpret unusual headers differently, and some crash on invalid ones. They therefore get the samples with one
kind of header only.
"""

import os
import struct

from tfvq.errors import UserError

MAGICS = (b"RIFF", b"RIFX", b"RF64", b"BW64")

PCM, FLOAT, _A_LAW, _MU_LAW = 1, 3, 6, 7
_BLOCK_FORMATS = (0x02, 0x11, 0x31)  # Microsoft ADPCM, IMA ADPCM and GSM 6.10, which keep their own headers
_EXTENSIBLE = 0xFFFE
_EXTENSIBLE_GUID = (0, 0x10, bytes.fromhex("800000aa00389b71"))  # after the tag
_BITS = {PCM: range(1, 33), FLOAT: (32, 64), _A_LAW: (8,), _MU_LAW: (8,)}
_MAX_CHANNELS = 1024  # libsndfile's limit

# Programs that write to a pipe do not know the length: they write zero, or a size of at least this.
_MIN_STREAM_SIZE = 0x7FFFF000

_MAX_CHUNKS = 1000
_MAX_FORMAT_BYTES = 1024


def plain_header(file, name: str):
  """Checks a WAV file: RIFF, RIFX (big-endian), RF64 or BW64.

  The samples are those of the first data chunk. If its size is zero or at least 2 GiB and does not fit the file, the
  file was written as a stream, and the samples go to its end.

  Args:
    file: The file, binary and seekable.
    name: Its name, for errors.

  Returns:
    A header with only what decoding needs, and the byte positions of the first sample and of the end of the samples.
    None if the file must be decoded with its own header (ADPCM and GSM).

  Raises:
    UserError: The header is inconsistent, the file is truncated, or its format is not supported.
  """
  file_size = file.seek(0, os.SEEK_END)
  file.seek(0)
  magic = file.read(12)[:4]
  order = ">" if magic == b"RIFX" else "<"
  fields, start, claimed = _find_chunks(file, name, order, file_size)
  tag, num_channels, rate_hz, align, bits = _parse_format(fields, name, order)
  if tag in _BLOCK_FORMATS:
    return None
  if not 0 < rate_hz < 2**31:
    raise UserError(f"{name} is a damaged WAV file: its header has a sample rate of {rate_hz} Hz.")
  bytes_per_frame = _checked_frame_bytes(name, tag, num_channels, align, bits)
  num_bytes = _data_size(file, name, order, start, claimed, file_size) // bytes_per_frame * bytes_per_frame
  bits = 8 * (bytes_per_frame // num_channels)
  byte_rate = min(rate_hz * bytes_per_frame, 0xFFFFFFFF)
  plain = struct.pack(order + "HHIIHH", tag, num_channels, rate_hz, byte_rate, bytes_per_frame, bits)
  chunks = b"WAVE" + _chunk(b"fmt ", plain, order)
  if num_bytes < 0xFFFFFF00:
    head = magic if order == ">" else b"RIFF"
    head += struct.pack(order + "I", len(chunks) + 8 + num_bytes) + chunks
    head += b"data" + struct.pack(order + "I", num_bytes)
  else:
    sizes = struct.pack("<QQQI", len(chunks) + 44 + num_bytes, num_bytes, num_bytes // bytes_per_frame, 0)
    head = b"RF64\xff\xff\xff\xffWAVE" + _chunk(b"ds64", sizes, "<") + chunks[4:] + b"data\xff\xff\xff\xff"
  return head, start, start + num_bytes


def _chunk(kind, body, order):
  return kind + struct.pack(order + "I", len(body)) + body


def _find_chunks(file, name, order, file_size):
  """The body of the chunk `fmt `, the position of the samples, and their number of bytes as the header claims it."""
  fields, long_size, position = None, None, 12
  for _ in range(_MAX_CHUNKS):
    file.seek(position)
    header = file.read(8)
    if len(header) < 8:
      break
    kind, size = struct.unpack(order + "4sI", header)
    if kind == b"data":
      if fields is None:
        raise UserError(f"{name} is a WAV file without a `fmt ` chunk before its samples.")
      return fields, position + 8, long_size if size == 0xFFFFFFFF and long_size is not None else size
    if position + 8 + size > file_size or not kind.isascii():
      break
    if kind == b"fmt ":
      fields = file.read(min(size, _MAX_FORMAT_BYTES))
    elif kind == b"ds64" and size >= 16:
      long_size = struct.unpack("<8xQ", file.read(16))[0]
    position += 8 + size
    if size % 2:  # a padding byte should follow, which some programs forget
      file.seek(position)
      position += file.read(4) not in (b"data", b"fmt ", b"fact", b"LIST")
  raise UserError(f"{name} is a WAV file without samples: its header is truncated or damaged.")


def _parse_format(fields, name, order):
  """Format tag, channels, sample rate, bytes per frame and bits per sample."""
  if len(fields) < 16:
    raise UserError(f"{name} is a damaged WAV file: its `fmt ` chunk has {len(fields)} bytes instead of 16 or more.")
  tag, num_channels, rate_hz, _, align, bits = struct.unpack_from(order + "HHIIHH", fields)
  if tag == _EXTENSIBLE:
    tag, *guid = struct.unpack_from(order + "IHH8s", fields.ljust(40, b"\0"), 24)
    if tuple(guid) != _EXTENSIBLE_GUID:
      raise UserError(f"{name} is a WAV file of an unknown extensible format: convert it to 16-bit PCM.")
  return tag, num_channels, rate_hz, align, bits


def _checked_frame_bytes(name, tag, num_channels, align, bits):
  if tag not in _BITS:
    raise UserError(
      f"{name} is a WAV file of format 0x{tag:04x}; PCM, floats, A-law, mu-law, ADPCM and GSM 6.10 can be read: "
      "convert it to 16-bit PCM."
    )
  if not 1 <= num_channels <= _MAX_CHANNELS:
    raise UserError(f"{name} is a WAV file of {num_channels} channels; 1 to {_MAX_CHANNELS} can be read.")
  if bits not in _BITS[tag]:
    raise UserError(f"{name} is a WAV file of {bits} bits per sample, which its format (0x{tag:04x}) does not have.")
  bytes_per_frame = num_channels * -(-bits // 8)
  if align != bytes_per_frame:
    raise UserError(
      f"{name} is a damaged WAV file: its header has {align} bytes per frame, but {num_channels} channels of "
      f"{bits} bits take {bytes_per_frame}."
    )
  return bytes_per_frame


def _data_size(file, name, order, start, claimed, file_size):
  """The number of bytes of samples."""
  available = max(0, file_size - start)
  if claimed == 0:
    return 0 if _chunks_follow(file, order, start, file_size) else available
  if claimed <= available:
    return claimed
  if claimed >= _MIN_STREAM_SIZE:
    return available
  raise UserError(f"{name} is truncated: its header claims {claimed} bytes of samples, but it has {available}.")


def _chunks_follow(file, order, position, file_size):
  """Whether a chunk, not samples, begins at a position."""
  file.seek(position)
  header = file.read(8)
  if len(header) < 8:
    return False
  kind, size = struct.unpack(order + "4sI", header)
  return kind.isascii() and kind.decode().isprintable() and position + 8 + size <= file_size
