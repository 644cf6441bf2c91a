"""Unusual and invalid audio files in memory; unless noted otherwise, each contains `tone(0.5)`."""

import io
import struct

import numpy as np
import soundfile

from tests.sound import tone
from tfvq.data.mp3_frames import counted_header

RATE_HZ = 16_000


def encoded(audio, rate_hz=RATE_HZ, **settings):
  """Encodes audio with libsndfile, as bytes."""
  file = io.BytesIO()
  soundfile.write(file, audio, rate_hz, **settings)
  return file.getvalue()


def chunk(kind, body, size=None, order="<", pad=True):
  size = len(body) if size is None else size
  return kind + struct.pack(order + "I", size) + body + bytes(pad and len(body) % 2)


def form(tag=1, channels=1, bits=16, rate_hz=RATE_HZ, align=None, extra=b"", order="<"):
  align = channels * -(-bits // 8) & 0xFFFF if align is None else align
  fields = struct.pack(order + "HHIIHH", tag, channels, rate_hz, rate_hz * align & 0xFFFFFFFF, align, bits)
  return chunk(b"fmt ", fields + extra, order=order)


def extensible(tag, bits, valid_bits=None, channels=1, order="<"):
  guid = struct.pack(order + "IHH", tag, 0, 0x10) + bytes.fromhex("800000aa00389b71")
  return form(0xFFFE, channels, bits, extra=struct.pack(order + "HHI", 22, valid_bits or bits, 0) + guid, order=order)


def wav(data, fmt=None, before=b"", between=b"", after=b"", data_size=None, magic=b"RIFF", order="<"):
  fmt = form() if fmt is None else fmt
  body = b"WAVE" + before + fmt + between + chunk(b"data", data, data_size, order) + after
  return magic + struct.pack(order + "I", min(len(body), 0xFFFFFFFF)) + body


def pcm(audio, subtype="PCM_16", order="LITTLE"):
  """Samples without a header."""
  return encoded(audio, format="RAW", subtype=subtype, endian=order)


def long_wav(data, size, magic):
  """A WAV file with 64-bit sizes."""
  sizes = struct.pack("<QQQI", len(data) + 72, size, len(data) // 2, 0)
  return wav(data, before=chunk(b"ds64", sizes), data_size=0xFFFFFFFF, magic=magic)


_SAMPLES = pcm(tone(0.5))
_LIST = chunk(b"LIST", b"INFOISFT\x09\0\0\0Some tool")
_FLAC = encoded(tone(0.5), format="FLAC")
_MP3_TONE = encoded(tone(0.5), format="MP3")
_COUNT = _MP3_TONE[21:25]  # of frames, after the header of 4 bytes, 9 of side information, "Info" and flags
_STREAMS = {
  f"size_{size:x}": wav(_SAMPLES, data_size=size) for size in (0, 0x7FFFF000, 0x80000000, 0xFFFFFFF8, 2**32 - 1)
}


def flac_of_length(num_samples, flac=_FLAC):
  """Changes the length in the header of a FLAC file; 0 means unknown."""
  fields = int.from_bytes(flac[18:26], "big") >> 36 << 36 | num_samples
  return flac[:18] + fields.to_bytes(8, "big") + flac[26:]


# Each contains `tone(0.5)`.
VALID = {
  "mu_law": wav(pcm(tone(0.5), "ULAW"), form(7, bits=8, extra=b"\0\0"), between=chunk(b"fact", b"\x40\x1f\0\0")),
  "mu_law_extensible": wav(pcm(tone(0.5), "ULAW"), extensible(7, 8)),
  "a_law_extensible": wav(pcm(tone(0.5), "ALAW"), extensible(6, 8)),
  "pcm_extensible": wav(_SAMPLES, extensible(1, 16)),
  "24_bits_in_32": wav(pcm(tone(0.5), "PCM_32"), extensible(1, 32, 24)),
  "12_bits_in_16": wav(_SAMPLES, extensible(1, 16, 12)),
  "20_bits": wav(pcm(tone(0.5), "PCM_24"), form(bits=20)),
  "32_bits": wav(pcm(tone(0.5), "PCM_32"), form(bits=32)),
  "float_extensible": wav(pcm(tone(0.5), "FLOAT"), extensible(3, 32)),
  "double": wav(pcm(tone(0.5), "DOUBLE"), form(3, bits=64)),
  "ima_adpcm": encoded(tone(0.5), format="WAV", subtype="IMA_ADPCM"),
  "big_endian": wav(pcm(tone(0.5), order="BIG"), form(order=">"), magic=b"RIFX", order=">"),
  "big_endian_extensible": wav(pcm(tone(0.5), order="BIG"), extensible(1, 16, order=">"), magic=b"RIFX", order=">"),
  "rf64": long_wav(_SAMPLES, len(_SAMPLES), b"RF64"),
  "bw64": long_wav(_SAMPLES, len(_SAMPLES), b"BW64"),
  "rf64_stream": long_wav(_SAMPLES, 2**64 - 1, b"RF64"),
  "format_of_18_bytes": wav(_SAMPLES, form(extra=b"\0\0")),
  "format_of_20_bytes": wav(_SAMPLES, form(extra=b"\2\0\0\0")),
  "odd_list": wav(_SAMPLES, between=_LIST),
  "odd_list_without_padding": wav(_SAMPLES, between=_LIST[:-1]),
  "odd_list_before_and_after": wav(_SAMPLES, before=_LIST, after=_LIST),
  "odd_id3": wav(_SAMPLES, before=chunk(b"id3 ", bytes(101)), after=chunk(b"id3 ", bytes(999))),
  "far_format": wav(_SAMPLES, before=chunk(b"JUNK", bytes(90_002))),
  "rubbish_after": wav(_SAMPLES, after=b"\xff\x01\x02" * 99),
  "odd_size": wav(_SAMPLES + b"\1"),
  "second_data_chunk": wav(_SAMPLES, after=chunk(b"data", bytes(4000))),
  "wrong_riff_size": b"RIFF\0\0\0\0" + wav(_SAMPLES)[8:],
  **_STREAMS,
  "stream_after_list": wav(_SAMPLES, between=_LIST, data_size=2**32 - 1),
  "flac_of_unknown_length": flac_of_length(0),
  "flac_that_claims_one_sample": flac_of_length(1),
  "flac_that_claims_half": flac_of_length(4000),
  "flac_that_claims_all_but_one_sample": flac_of_length(7999),
  "flac_after_id3": b"ID3\3\0\0\0\0\1\0" + bytes(128) + _FLAC,
  "mp3_that_counts_its_first_frame": _MP3_TONE.replace(_COUNT, struct.pack(">I", struct.unpack(">I", _COUNT)[0] + 1)),
  "mp3_with_tags": b"ID3\3\0\0\0\0\1\0" + bytes(128) + _MP3_TONE + b"TAG" + bytes(125),
}

# Each with the error that it causes.
REFUSED = {
  "align_0": (wav(_SAMPLES, form(align=0)), "its header has 0 bytes per frame, but 1 channels of 16 bits take 2"),
  "align_1": (wav(_SAMPLES, form(align=1)), "has 1 bytes per frame"),
  "align_3": (wav(_SAMPLES, form(align=3)), "has 3 bytes per frame"),
  "align_8": (wav(_SAMPLES, form(align=8)), "has 8 bytes per frame"),
  "24_bits_in_4_bytes": (
    wav(_SAMPLES, form(bits=24, align=4)),
    "has 4 bytes per frame, but 1 channels of 24 bits take 3",
  ),
  "2_channels_in_2_bytes": (wav(_SAMPLES, form(channels=2, align=2)), "but 2 channels of 16 bits take 4"),
  "no_bits": (wav(_SAMPLES, form(bits=0, align=2)), "is a WAV file of 0 bits per sample"),
  "64_bits": (wav(_SAMPLES, form(bits=64)), "is a WAV file of 64 bits per sample"),
  "no_channels": (wav(_SAMPLES, form(channels=0)), "is a WAV file of 0 channels"),
  "many_channels": (wav(_SAMPLES, form(channels=32_767)), "is a WAV file of 32767 channels; 1 to 1024 can be read"),
  "rate_0": (wav(_SAMPLES, form(rate_hz=0)), "has a sample rate of 0 Hz"),
  "rate_7": (wav(_SAMPLES, form(rate_hz=7)), "has a sample rate of 7 Hz; 1000 to 768000 Hz can be read"),
  "rate_2e9": (wav(_SAMPLES, form(rate_hz=2_000_000_000)), "has a sample rate of 2000000000 Hz"),
  "rate_largest": (wav(_SAMPLES, form(rate_hz=2**32 - 1)), "has a sample rate of 4294967295 Hz"),
  "mp3_in_wav": (wav(_SAMPLES, form(0x55, bits=0, align=1)), "is a WAV file of format 0x0055"),
  "unknown_extensible": (wav(_SAMPLES, form(0xFFFE)), "unknown extensible format"),
  "short_format": (wav(_SAMPLES, chunk(b"fmt ", bytes(14))), "`fmt ` chunk has 14 bytes"),
  "format_after_data": (wav(_SAMPLES, b"", after=form()), "without a `fmt ` chunk before its samples"),
  "little_endian_rifx": (wav(_SAMPLES, magic=b"RIFX"), "its header is truncated or damaged"),
  "no_data": (wav(_SAMPLES)[:40], "its header is truncated or damaged"),
  "chunk_beyond_the_end": (wav(_SAMPLES, before=chunk(b"LIST", b"", 2**31)), "its header is truncated or damaged"),
  "endless_chunks": (wav(_SAMPLES, before=chunk(b"JUNK", b"") * 2000), "its header is truncated or damaged"),
  "no_samples": (wav(b""), "holds no samples"),
  "no_samples_but_a_list": (wav(b"", after=_LIST), "holds no samples"),
  "truncated": (wav(_SAMPLES)[:9044], "is truncated: its header claims 16000 bytes of samples, but it has 9000"),
  "truncated_rf64": (long_wav(_SAMPLES, 10**6, b"RF64"), "is truncated: its header claims 1000000 bytes"),
  "huge_floats": (wav(pcm(tone(0.5) * 1e37, "FLOAT"), form(3, bits=32)), "not finite numbers of at most 2\\^31"),
  "words": (b"these are words", "is not a WAV, FLAC, MP3 or Ogg Vorbis file"),
  "nothing": (b"", "is not a WAV, FLAC, MP3 or Ogg Vorbis file"),
  "id3_of_256_mib": (b"ID3\3\0\0\x7f\x7f\x7f\x7f" + _FLAC, "is not a WAV, FLAC, MP3 or Ogg Vorbis file"),
  "flac_cut": (_FLAC[: len(_FLAC) // 2], "is truncated or damaged"),
  "flac_of_unknown_length_cut": (flac_of_length(0)[: len(_FLAC) // 2], "is truncated or damaged"),
  "flac_that_claims_more": (flac_of_length(8001), "is truncated or damaged"),
  "flac_that_claims_days": (flac_of_length(2**29), "is truncated or damaged"),
  "flac_that_claims_most": (flac_of_length(2**36 - 1), "is truncated or damaged"),
  "flac_joined": (_FLAC + _FLAC, "several concatenated files"),
}


def noise(num_samples=3 * RATE_HZ, channels=2, seed=0):
  """Noise of varying loudness, float32 [T, C]: variable bit rates vary, and all parts differ."""
  envelope = np.abs(np.sin(np.arange(num_samples) / 8000))[:, np.newaxis]
  return (0.1 * envelope * np.random.default_rng(seed).normal(size=[num_samples, channels])).astype(np.float32)


_OGG = encoded(noise(), format="OGG")
_MP3 = encoded(noise(), format="MP3")
REFUSED |= {
  "ogg_chained": (_OGG + encoded(noise(seed=1), format="OGG"), "several concatenated files"),
  "ogg_twice": (_OGG + _OGG, "several concatenated files"),
  "ogg_joined_by_rubbish": (_OGG + bytes(1000) + _OGG, "several concatenated files"),
  "ogg_cut": (_OGG[: len(_OGG) // 2], "is truncated"),
  "ogg_damaged": (_OGG[:9000] + bytes(100) + _OGG[9100:], "is truncated or damaged"),
  "mp3_cut": (_MP3[: len(_MP3) // 2], "is truncated: its header claims [0-9]+ MP3 frames"),
  "mp3_damaged": (_MP3[:9000] + bytes(1000) + _MP3[10_000:], "is damaged or is several concatenated MP3 files"),
  "mp3_joined": (_MP3 + _MP3, "is several concatenated MP3 files"),
}


def mp3_frame_positions(mp3):
  """Positions of the first frames of an MP3 file."""
  positions, position = [], 0
  for _ in range(60):
    position += counted_header(io.BytesIO(mp3[position:]), "", 0)[1]
    positions.append(position)
    position += 1
  return positions
