"""Finds the frames of an MP3 file without decoding them.

Decoders read the length from the first frame. If it is missing, they guess it from the first bit rate and drop
everything beyond, which loses sound if the bit rate varies. This module therefore counts the frames.
"""

import os
import struct

from tfvq.errors import UserError

_KILOBITS_1 = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_KILOBITS_2 = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8000)}  # by version bits

_MAX_FRAME_BYTES = 1441
_MAX_BYTES_BEFORE = 65_536  # before the first whole frame, in a file that was cut at any byte
_FRAMES_IN_A_ROW = 3  # fewer may be chance


def counted_header(file, name: str, position: int):
  """Checks an MP3 file, or a segment of one.

  Args:
    file: The file, binary and seekable.
    name: Its name, for errors.
    position: Byte position after the tags at its beginning.

  Returns:
    A first frame that states the length, the byte position of the frame to follow it, and that of the end of the last
    frame. None if it is not an MP3 file.

  Raises:
    UserError: The file is truncated or damaged, or is several concatenated files.
  """
  first = _find_frames(file, position, position + _MAX_BYTES_BEFORE)
  if first is None:
    return None
  file.seek(first)
  head = file.read(_MAX_FRAME_BYTES).ljust(_MAX_FRAME_BYTES, b"\0")
  side_bytes = _side_bytes(head)
  count, end = _count_frames(file, first)
  if _find_frames(file, end, None) is not None:
    raise UserError(f"{name} is damaged or is several concatenated MP3 files: convert it to one WAV file.")
  info = head[4 + side_bytes :]
  if info[:4] in (b"Xing", b"Info") and info[7] & 1:
    claimed, following = struct.unpack_from(">I", info, 8)[0], count - 1
    if claimed > following + 1:  # some encoders count this frame too
      raise UserError(f"{name} is truncated: its header claims {claimed} MP3 frames, but it has {following}.")
    if claimed < following - 1:
      raise UserError(
        f"{name} is several concatenated MP3 files: its header claims {claimed} frames, but it has {following}; "
        "convert it to one WAV file."
      )
    info_bytes = _frame_bytes(head)
    frame = head[: 12 + side_bytes] + struct.pack(">I", following) + head[16 + side_bytes : info_bytes]
    return frame, first + info_bytes, end
  header = bytes([0xFF, head[1] | 1, 0x50 | (head[2] & 0x0C), head[3]])
  frame = header + bytes(side_bytes) + b"Xing" + struct.pack(">II", 1, count)
  return frame.ljust(_frame_bytes(header), b"\0"), first, end


def _frame_bytes(header):
  """Length in bytes of the MPEG layer III frame with this 4-byte header, 0 if it is not such a header."""
  if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
    return 0
  version, kilobits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
  if version == 1 or kilobits in (0, 15) or rate == 3:
    return 0
  padding = header[2] >> 1 & 1
  if version == 3:
    return 144_000 * _KILOBITS_1[kilobits] // _RATES_HZ[version][rate] + padding
  return 72_000 * _KILOBITS_2[kilobits] // _RATES_HZ[version][rate] + padding


def _side_bytes(header):
  """Length in bytes of a frame's side information, which depends on its version and on whether it is mono."""
  mono = header[3] >> 6 == 3
  if header[1] >> 3 & 3 == 3:
    return 17 if mono else 32
  return 9 if mono else 17


def _count_frames(file, position, at_most=None):
  """Counts the consecutive whole frames of one version and rate from a position; returns the count and their end."""
  size = file.seek(0, os.SEEK_END)
  file.seek(position)
  count, kind = 0, None
  while count != at_most:
    header = file.read(4)
    num_bytes = _frame_bytes(header)
    if not num_bytes or position + num_bytes > size:
      break
    if kind not in (None, (header[1] & 0x1E, header[2] & 0x0C)):
      break
    kind = header[1] & 0x1E, header[2] & 0x0C
    position += num_bytes
    file.seek(num_bytes - 4, os.SEEK_CUR)
    count += 1
  return count, position


def _find_frames(file, start, stop):
  """The first position from `start` to `stop` with several consecutive frames, or None."""
  while stop is None or start < stop:
    file.seek(start)
    block = file.read(_MAX_BYTES_BEFORE)
    place = block.find(b"\xff")
    while place >= 0:
      if _frame_bytes(block[place : place + 4]) or place + 4 > len(block):
        count, end = _count_frames(file, start + place, _FRAMES_IN_A_ROW)
        if count == _FRAMES_IN_A_ROW or (count and end == file.seek(0, os.SEEK_END)):
          return start + place
      place = block.find(b"\xff", place + 1)
    if len(block) < _MAX_BYTES_BEFORE:
      return None
    start += len(block)
  return None
