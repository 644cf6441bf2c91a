"""WAV files of the device codec."""

import io
import pathlib
import struct
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import soundfile
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from export.device import CodecError
from export.device.wav_file import read_wav, wav_bytes

ROOT = pathlib.Path(__file__).parent.parent
AUDIO = np.arange(-500, 500, dtype="<i2") * 60
CONTENT = AUDIO.tobytes()
SUBFORMAT_END = bytes.fromhex("000000001000800000aa00389b71")
UNKNOWN = 2**32 - 1


def chunk(name, body, size=None):
  return name + struct.pack("<I", len(body) if size is None else size) + body + bytes(len(body) % 2)


def format_chunk(tag=1, channels=1, rate_hz=16_000, bits=16, frame_bytes=None, extra=b""):
  frame_bytes = channels * bits // 8 if frame_bytes is None else frame_bytes
  fields = struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * frame_bytes % 2**32, frame_bytes, bits)
  return chunk(b"fmt ", fields + extra)


def extensible(subformat=1, valid_bits=16, end=SUBFORMAT_END):
  return format_chunk(0xFFFE, extra=struct.pack("<HHIH", 22, valid_bits, 4, subformat) + end)


def wav(kind, audio=CONTENT, *, size=None, riff_size=None, magic=b"RIFF", before=b"", between=b"", after=b""):
  body = b"WAVE" + before + kind + between + chunk(b"data", audio, size) + after
  return magic + struct.pack("<I", len(body) if riff_size is None else riff_size) + body


def read(content):
  return read_wav(io.BytesIO(content), "it.wav", 16_000)


def rf64(size, magic=b"RF64"):
  sizes = chunk(b"ds64", struct.pack("<QQQI", 0, size, size // 2, 0))
  return wav(format_chunk(), size=UNKNOWN, riff_size=UNKNOWN, magic=magic, before=sizes)


LIST = chunk(b"LIST", b"INFOISFT" + struct.pack("<I", 9) + b"Some tool")
WHOLE = {
  "plain": wav(format_chunk()),
  "format of 18 bytes": wav(format_chunk(extra=b"\0\0")),
  "extensible": wav(extensible()),
  "extensible, 12 bits valid": wav(extensible(valid_bits=12)),
  "chunks around": wav(format_chunk(), before=LIST, between=LIST, after=LIST),
  "stream of ffmpeg": wav(format_chunk(), size=UNKNOWN, riff_size=UNKNOWN, between=LIST),
  "stream of sox": wav(format_chunk(), size=0x7FFFF000, riff_size=0x7FFFF024),
  "stream of arecord": wav(format_chunk(), size=0x80000000, riff_size=0x80000024),
  "stream of others": wav(format_chunk(), size=0xFFFFFFF8),
  "stream of size 0": wav(format_chunk(), size=0, riff_size=0),
  "never closed": wav(format_chunk(), size=0),
  "RF64": rf64(2000),
  "BW64": rf64(2000, b"BW64"),
  "RF64 as a stream": rf64(0),
  "RF64 as an endless stream": rf64(2**64 - 1),
  "wrong RIFF size": wav(format_chunk(), riff_size=12),
  "bytes behind": wav(format_chunk(), after=b"\xff\x01\x02"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_read_wav_reads_16_bit_mono(name):
  samples = read(WHOLE[name])
  assert samples.dtype == np.float32
  np.testing.assert_array_equal(samples * 2**15, AUDIO)


@pytest.mark.parametrize(
  ("content", "reason"),
  [
    (b"", "it is not a WAV file"),
    (b"RIFF\0\0\0\0AVI ", "it is not a WAV file"),
    (wav(format_chunk(), magic=b"RIFX"), "it is not a WAV file"),
    (b"RIFF\0\0\0\0WAVE", "it has no audio data"),
    (b"RIFF$\0\0\0WAVEjunk\xff\xff\xff\x7f", "it has no audio data"),
    (b"RIFF\0\0\0\0WAVE" + format_chunk(), "it has no audio data"),
    (wav(b""), "it does not say what format it has"),
    (wav(chunk(b"fmt ", bytes(14))), "it does not say what format it has"),
    (wav(format_chunk(tag=3, bits=32)), "its samples have format 3, not PCM"),
    (wav(format_chunk(tag=7, bits=8)), "its samples have format 7, not PCM"),
    (wav(extensible(subformat=7)), "its samples have format 7, not PCM"),
    (wav(extensible(end=bytes(14))), "its samples have format 65534, not PCM"),
    (wav(format_chunk(rate_hz=44_100)), "it has 44100 Hz, 1 channel, 16 bits"),
    (wav(format_chunk(channels=2)), "it has 16000 Hz, 2 channels, 16 bits"),
    (wav(format_chunk(channels=0, frame_bytes=2)), "it has 16000 Hz, 0 channels, 16 bits"),
    (wav(format_chunk(bits=24)), "it has 16000 Hz, 1 channel, 24 bits"),
    (wav(format_chunk(frame_bytes=0)), "its samples take 0 bytes each"),
    (wav(format_chunk(frame_bytes=8)), "its samples take 8 bytes each"),
    (wav(format_chunk(), b""), "it is empty or truncated"),
    (wav(format_chunk(), b"", after=LIST), "it is empty or truncated"),
    (wav(format_chunk(), b"", after=LIST[:-1]), "it is empty or truncated"),
    (wav(format_chunk(), size=UNKNOWN)[:44], "it is empty or truncated"),
    (wav(format_chunk())[:-1000], "it is empty or truncated"),
    (rf64(2002), "it is empty or truncated"),
    (rf64(2**40), "it is empty or truncated"),
  ],
)
def test_read_wav_rejects_other_files_with_reason(content, reason):
  with pytest.raises(CodecError) as error:
    read(content)
  assert str(error.value) == f"it.wav cannot be encoded because {reason}: give a WAV file of 16000 Hz, mono, 16 bits."


def test_odd_last_byte_is_dropped():
  np.testing.assert_array_equal(read(wav(format_chunk(), CONTENT + b"\1")) * 2**15, AUDIO)
  streamed = wav(format_chunk(), size=UNKNOWN) + b"\1"
  np.testing.assert_array_equal(read(streamed) * 2**15, AUDIO)


names = st.sampled_from([b"JUNK", b"junk", b"PAD ", b"user"])
chunks = st.lists(st.builds(chunk, names, st.binary(max_size=50)), max_size=3).map(b"".join)


@given(chunks, chunks, chunks, st.sampled_from([format_chunk(), format_chunk(extra=b"\0\0"), extensible()]), st.data())
def test_read_wav_matches_libsndfile(before, between, after, kind, data):
  audio = data.draw(st.binary(min_size=2, max_size=100))
  assume(not audio.startswith((b"OggS", b"wvpk")))  # libsndfile takes such samples for compressed audio
  content = wav(kind, audio, before=before, between=between, after=after)
  expected, _ = soundfile.read(io.BytesIO(content), dtype="int16")
  np.testing.assert_array_equal(read(content) * 2**15, expected)


sizes = st.one_of(st.integers(0, 3000), st.sampled_from([2**31 - 4096, 2**31, UNKNOWN - 8, UNKNOWN]))


@settings(max_examples=500)
@given(st.data())
def test_random_headers_raise_only_codec_errors_and_need_little_memory(data):
  content = bytearray(WHOLE[data.draw(st.sampled_from(sorted(WHOLE)))])
  for _ in range(data.draw(st.integers(0, 6))):
    place = data.draw(st.integers(0, 90))
    content[place : place + 4] = data.draw(st.one_of(st.binary(min_size=1, max_size=5), sizes.map(int32_bytes)))
  content = bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
  tracemalloc.start()
  try:
    samples = read(content)
  except CodecError as error:
    assert str(error).startswith("it.wav cannot be encoded because ") and "\n" not in str(error)
  else:
    assert 0 < len(samples) <= len(content) // 2
  finally:
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
  assert peak < 100_000


def int32_bytes(size):
  return struct.pack("<I", size)


def test_stream_is_read_with_little_memory(tmp_path):
  for name in ("stream of ffmpeg", "stream of sox", "RF64 as an endless stream"):
    (tmp_path / f"{name}.wav").write_bytes(WHOLE[name])
  code = """if True:
    import resource, sys
    from export.device.wav_file import read_wav
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
    for path in sys.argv[1:]:
      print(len(read_wav(open(path, "rb"), path, 16_000)))
  """
  command = [sys.executable, "-c", code, *map(str, tmp_path.iterdir())]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert result.stdout == "1000\n" * 3, result.stderr


@given(st.lists(st.floats(-1.5, 1.5, width=32), max_size=50))
def test_libsndfile_reads_written_wav(samples):
  samples = np.array(samples, np.float32)
  content = wav_bytes(samples, 16_000)
  read_back, rate_hz = soundfile.read(io.BytesIO(content), dtype="int16")
  assert rate_hz == 16_000
  np.testing.assert_array_equal(read_back, np.clip(np.round(samples * 2.0**15), -(2**15), 2**15 - 1))
  if len(samples):
    np.testing.assert_array_equal(read(content) * 2**15, read_back)
