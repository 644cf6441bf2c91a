import os
import pathlib
import struct
import wave

import numpy as np
import pytest
import soundfile
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sound import tone
from tfvq.data.audio_files import SAMPLE_RATE_HZ, AudioReader, resampled, write_wav
from tfvq.errors import UserError


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"])
@pytest.mark.parametrize("container", ["WAV", "WAVEX"])
def test_every_sample_format_is_read(subtype, container, tmp_path):
  path = tmp_path / "a.wav"
  soundfile.write(path, tone(0.2), SAMPLE_RATE_HZ, subtype=subtype, format=container)
  audio = AudioReader(path).read()
  np.testing.assert_allclose(audio, tone(0.2), atol=0.01 if subtype == "PCM_U8" else 1e-4)


@pytest.mark.parametrize(("suffix", "error"), [(".flac", 1e-4), (".ogg", 0.03), (".mp3", 0.03)])
@pytest.mark.parametrize("rate_hz", [8000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("num_channels", [1, 2])
def test_every_kind_of_file_becomes_16_khz_mono(suffix, error, rate_hz, num_channels, tmp_path):
  path = tmp_path / f"a{suffix}"
  soundfile.write(path, np.stack([tone(1.0, rate_hz)] * num_channels, axis=1), rate_hz)
  reader = AudioReader(path)
  audio = reader.read()
  assert len(audio) == reader.num_samples and abs(reader.num_samples - SAMPLE_RATE_HZ) < 0.1 * SAMPLE_RATE_HZ
  spectrum = np.abs(np.fft.rfft(audio[2000:14_000] * np.hanning(12_000)))
  assert abs(np.argmax(spectrum) * SAMPLE_RATE_HZ / 12_000 - 440) < 2
  np.testing.assert_allclose(np.std(audio[2000:14_000]), 0.3 / np.sqrt(2), atol=error + 0.005)


@pytest.mark.parametrize(("second", "mean"), [(-1.0, 0.0), (0.5, 0.75)])
def test_high_sample_rates_and_channels_are_averaged(second, mean, tmp_path):
  path = tmp_path / "a.wav"
  soundfile.write(path, np.stack([tone(0.5, 96_000), second * tone(0.5, 96_000)], axis=1), 96_000)
  audio = AudioReader(path).read()[1000:7000]
  spectrum = np.abs(np.fft.rfft(audio * np.hanning(6000))) / 1500
  np.testing.assert_allclose(spectrum[165], mean * 0.3, atol=1e-3)  # 440 Hz
  np.testing.assert_allclose(np.delete(spectrum, range(160, 171)), 0, atol=1e-3)


def test_a_wav_of_32_bit_integers_is_known_wherever_its_header_lies(tmp_path):
  soundfile.write(tmp_path / "a.wav", tone(0.2), SAMPLE_RATE_HZ, subtype="PCM_32")
  content = (tmp_path / "a.wav").read_bytes()
  chunk = b"JUNK" + struct.pack("<I", 9002) + bytes(9002)
  content = content[:4] + struct.pack("<I", len(content) - 8 + len(chunk)) + content[8:12] + chunk + content[12:]
  (tmp_path / "a.wav").write_bytes(content)
  np.testing.assert_allclose(AudioReader(tmp_path / "a.wav").read(), tone(0.2), atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 79_999), st.integers(1, 30_000), st.sampled_from([16_000, 22_050, 48_000]))
def test_a_part_is_that_part_of_the_whole(tmp_path_factory, start, length, rate_hz):
  path = tmp_path_factory.mktemp("audio") / "a.wav"
  noise = np.random.default_rng(0).normal(size=5 * rate_hz).astype(np.float32) * 0.1
  soundfile.write(path, noise, rate_hz)
  reader = AudioReader(path)
  part = reader.read(start, start + length)
  np.testing.assert_allclose(part, reader.read()[start : start + length], atol=1e-4)


def test_what_was_written_is_read(tmp_path):
  write_wav(tmp_path / "a.wav", [tone(0.1), np.array([2.0, -2.0])])
  audio = AudioReader(tmp_path / "a.wav").read()
  np.testing.assert_allclose(audio[:-2], tone(0.1), atol=1e-4)
  np.testing.assert_allclose(audio[-2:], [1, -1], atol=1e-4)


@pytest.mark.parametrize(
  ("content", "sentence"),
  [
    (b"these are words", "is not a WAV, FLAC, MP3 or Ogg Vorbis file"),
    (b"", "is not a WAV, FLAC, MP3 or Ogg Vorbis file"),
    (
      b"RIFF"
      + struct.pack("<I", 36)
      + b"WAVEfmt "
      + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16)
      + b"data\0\0\0\0",
      "no samples",
    ),
  ],
)
def test_a_file_that_is_no_audio_gets_one_sentence(content, sentence, tmp_path):
  (tmp_path / "a.wav").write_bytes(content)
  with pytest.raises(UserError, match=sentence):
    AudioReader(tmp_path / "a.wav").read()
  with pytest.raises(UserError, match="is not a file"):
    AudioReader(tmp_path / "b.wav")


def test_a_name_that_is_not_utf_8_is_read(tmp_path):
  write_wav(tmp_path / "a.wav", [tone(0.1)])
  path = pathlib.Path(os.fsdecode(bytes(tmp_path / "caf") + b"\xe9.wav"))
  (tmp_path / "a.wav").rename(path)
  assert AudioReader(path).num_samples == 1600


def test_samples_that_are_no_numbers_are_told(tmp_path):
  soundfile.write(tmp_path / "a.wav", np.full(1000, np.nan, np.float32), SAMPLE_RATE_HZ, subtype="FLOAT")
  with pytest.raises(UserError, match="not finite"):
    AudioReader(tmp_path / "a.wav").read()


def test_resampling_keeps_a_tone():
  audio = resampled(tone(1.0, 22_050), 22_050)
  assert abs(len(audio) - SAMPLE_RATE_HZ) <= 2
  # The resampler may delay by some samples.
  errors = [np.abs(audio[2000 + delay : 14_000 + delay] - tone(1.0)[2000:14_000]).max() for delay in range(-8, 9)]
  assert min(errors) < 0.03


def test_resampling_at_many_rates_gives_no_warnings(caplog, monkeypatch):
  monkeypatch.setattr(tf.get_logger(), "handlers", [caplog.handler])
  for rate_hz in (9000, 12_000, 24_000, 37_800, 88_200):
    for seconds in (0.1, 0.2):
      resampled(tone(seconds, rate_hz), rate_hz)
  assert not caplog.messages


def test_wav_files_are_16_bit_mono(tmp_path):
  write_wav(tmp_path / "a.wav", [tone(0.1)])
  with wave.open(str(tmp_path / "a.wav")) as file:
    assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 16_000, 1600)
