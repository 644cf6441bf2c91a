import struct
import zlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from export.device import CodecError, codes_file

MODEL = b"12345678"


def encoded(codes, hop_samples=64, less=0, frame_shape=()):
  codes = np.array(codes, np.int32).reshape(-1, *frame_shape)
  return codes_file.EncodedSpeech(codes, MODEL, 1.5, len(codes) * hop_samples - less)


@given(st.integers(1, 5000), st.sampled_from([(), (1,), (2,), (3,)]), st.data())
def test_packed_codes_are_unpacked(num_values, frame_shape, data):
  per_frame, num_frames = int(np.prod(frame_shape)), data.draw(st.integers(0, 20))
  size = per_frame * num_frames
  codes = data.draw(st.lists(st.integers(0, num_values - 1), min_size=size, max_size=size))
  written = encoded(codes, less=data.draw(st.integers(0, 63)) if codes else 0, frame_shape=frame_shape)
  content = codes_file.pack(written, num_values, 64)
  read = codes_file.unpack(content, MODEL, num_values, 64, frame_shape)
  np.testing.assert_array_equal(read.codes, written.codes)
  assert read[1:] == written[1:]
  assert len(content) == 30 + -(-len(codes) * codes_file.bits_per_code(num_values) // 8)


@settings(max_examples=500)
@given(st.sampled_from([(), (2,)]), st.data())
def test_damaged_file_is_rejected(frame_shape, data):
  """Any change is detected; with a corrected checksum it is rejected or gives codes that are in range."""
  written = codes_file.pack(encoded(range(100, 140), frame_shape=frame_shape), 500, 64)
  content = bytearray(written)
  kind = data.draw(st.sampled_from(["cut", "change", "mend", "garbage"]))
  if kind == "cut":
    content = content[: data.draw(st.integers(0, len(content) - 1))]
  elif kind == "garbage":
    content = bytearray(data.draw(st.binary(max_size=80)))
  else:
    for _ in range(data.draw(st.integers(1, 5))):
      content[data.draw(st.integers(0, len(content) - 5))] ^= data.draw(st.integers(1, 255))
    if kind == "mend":
      content[-4:] = struct.pack("<I", zlib.crc32(content[:-4]))
  try:
    read = codes_file.unpack(bytes(content), MODEL, 500, 64, frame_shape)
  except CodecError:
    return
  assert kind == "mend" or bytes(content) == written
  assert not len(read.codes) or (read.codes.min() >= 0 and read.codes.max() < 500)
