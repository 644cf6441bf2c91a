import concurrent.futures
import functools
import io
import os
import pathlib
import subprocess
import sys
import warnings
import wave

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.audio_cases import encoded, noise
from tests.sound import SAMPLE_RATE_HZ, tone
from tfvq.data.audio_files import AudioReader, resampled, write_wav
from tfvq.errors import UserError

RATES_HZ = [8000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000, 192_000]


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT"])
@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64"])
def test_reader_supports_every_sample_format(subtype, container, tmp_path):
  path = tmp_path / "a.wav"
  soundfile.write(path, tone(0.2), SAMPLE_RATE_HZ, subtype=subtype, format=container)
  audio = AudioReader(path).read()
  np.testing.assert_allclose(audio, tone(0.2), atol=0.01 if subtype == "PCM_U8" else 1e-4)


@pytest.mark.parametrize(("suffix", "error"), [(".flac", 1e-4), (".ogg", 0.03), (".mp3", 0.03)])
@pytest.mark.parametrize("rate_hz", [8000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("num_channels", [1, 2])
def test_reader_converts_every_format_to_16_khz_mono(suffix, error, rate_hz, num_channels, tmp_path):
  path = tmp_path / f"a{suffix}"
  soundfile.write(path, np.stack([tone(1.0, rate_hz)] * num_channels, axis=1), rate_hz)
  reader = AudioReader(path)
  audio = reader.read()
  assert len(audio) == reader.num_samples == SAMPLE_RATE_HZ
  spectrum = np.abs(np.fft.rfft(audio[2000:14_000] * np.hanning(12_000)))
  assert abs(np.argmax(spectrum) * SAMPLE_RATE_HZ / 12_000 - 440) < 2
  np.testing.assert_allclose(np.std(audio[2000:14_000]), 0.3 / np.sqrt(2), atol=error + 0.005)


def chirp(rate_hz):
  """One second of a chirp from 100 to 3100 Hz that fades in and out: samples of the same signal at any rate."""
  seconds = np.arange(rate_hz) / rate_hz
  return (0.3 * np.sin(np.pi * seconds) ** 2 * np.sin(2 * np.pi * (100 + 1500 * seconds) * seconds)).astype(np.float32)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("to_rate_hz", [8000, 16_000, 22_100, 48_000])
def test_resampled_matches_analytic_signal(rate_hz, to_rate_hz):
  np.testing.assert_allclose(resampled(chirp(rate_hz), rate_hz, to_rate_hz), chirp(to_rate_hz), atol=1e-4)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("to_rate_hz", [8000, 16_000, 44_100])
def test_reader_adds_no_delay(format, rate_hz, to_rate_hz):
  if format == "MP3" and rate_hz > 48_000:
    rate_hz = 24_000  # the maximum of MP3 is 48 kHz
  audio = AudioReader(io.BytesIO(encoded(chirp(rate_hz), rate_hz, format=format)), to_rate_hz).read()
  # One sample of delay at 16 kHz would make the error 0.6 of the sound.
  error, power = np.mean(np.square(audio - chirp(to_rate_hz))), np.mean(np.square(chirp(to_rate_hz)))
  assert np.sqrt(error / power) < (1e-3 if format in ("WAV", "FLAC") else 0.15)


@pytest.mark.parametrize("second", [0.5, 0.0, -0.5])
def test_reader_averages_channels_and_removes_high_frequencies(second, tmp_path):
  path = tmp_path / "a.wav"
  soundfile.write(path, np.stack([tone(0.5, 96_000), second * tone(0.5, 96_000)], axis=1), 96_000)
  audio = AudioReader(path).read()[1000:7000]
  spectrum = np.abs(np.fft.rfft(audio * np.hanning(6000))) / 1500
  np.testing.assert_allclose(spectrum[165], (1 + second) / 2 * 0.3, atol=1e-3)  # 440 Hz
  np.testing.assert_allclose(np.delete(spectrum, range(160, 171)), 0, atol=1e-3)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
@pytest.mark.parametrize("second", [-1.0, -0.9])
def test_reader_uses_one_channel_if_average_cancels(format, second):
  silence = np.zeros([14 * SAMPLE_RATE_HZ, 2], np.float32)
  sound = np.concatenate([silence, np.stack([tone(1.0), second * tone(1.0)], axis=1), silence])
  reader = AudioReader(io.BytesIO(encoded(sound, format=format)))
  expected = np.concatenate([silence[:, 0], tone(1.0), silence[:, 0]])
  np.testing.assert_allclose(reader.read(), expected, atol=1e-4 if format in ("WAV", "FLAC") else 0.05)
  for start in (0, len(silence), 2 * len(silence)):  # every part uses the same channel
    np.testing.assert_allclose(reader.read(start, start + 9000), reader.read()[start : start + 9000], atol=1e-6)


@functools.cache
def _reader(format, rate_hz, to_rate_hz):
  file = encoded(noise(16 * rate_hz, channels=1), rate_hz, format=format)
  return AudioReader(io.BytesIO(file), to_rate_hz), AudioReader(io.BytesIO(file), to_rate_hz).read()


@settings(max_examples=40, deadline=None)
@given(
  st.lists(st.tuples(st.floats(0, 15.9), st.floats(0, 2)), min_size=1, max_size=3),
  st.sampled_from(["WAV", "FLAC", "OGG", "MP3"]),
  st.sampled_from([16_000, 22_050, 48_000]),
  st.sampled_from([8000, 16_000, 44_100]),
)
def test_read_of_part_matches_read_of_whole(parts, format, rate_hz, to_rate_hz):
  reader, whole = _reader(format, rate_hz, to_rate_hz)
  for begin, seconds in parts:
    start, length = int(begin * to_rate_hz), 1 + int(seconds * to_rate_hz)
    part = reader.read(start, start + length)
    np.testing.assert_allclose(part, whole[start : start + length], atol=1e-4)


def test_two_readers_are_independent(tmp_path):
  for frequency_hz in (440, 1000):
    write_wav(tmp_path / f"{frequency_hz}.wav", [tone(1.0, frequency_hz=frequency_hz)], SAMPLE_RATE_HZ)
  first, second = AudioReader(tmp_path / "440.wav"), AudioReader(tmp_path / "1000.wav")
  for _ in range(2):
    np.testing.assert_allclose(first.read(), tone(1.0), atol=1e-4)
    np.testing.assert_allclose(second.read(100, 9000), tone(1.0, frequency_hz=1000)[100:9000], atol=1e-4)


@pytest.mark.parametrize("format", ["WAV", "FLAC", "OGG", "MP3"])
def test_readers_in_threads_are_independent(format):
  files = [encoded(noise(16_000, seed=seed), format=format) for seed in range(8)]
  alone = [AudioReader(io.BytesIO(file)).read() for file in files]
  readers = [AudioReader(io.BytesIO(files[index % 8])) for index in range(64)]
  with concurrent.futures.ThreadPoolExecutor(8) as executor:
    parts = list(executor.map(lambda reader: [reader.read(start, start + 4000) for start in (0, 4000, 8000)], readers))
  for index, part in enumerate(parts):
    np.testing.assert_allclose(np.concatenate(part), alone[index % 8][:12_000], atol=1e-6)


def test_reader_accepts_open_file(tmp_path):
  soundfile.write(tmp_path / "a.flac", tone(0.5, 44_100), 44_100)
  expected = AudioReader(tmp_path / "a.flac").read()
  with (tmp_path / "a.flac").open("rb") as file:
    np.testing.assert_array_equal(AudioReader(file).read(), expected)
  np.testing.assert_array_equal(AudioReader(io.BytesIO((tmp_path / "a.flac").read_bytes())).read(), expected)
  with pytest.raises(UserError, match="^the upload is not a WAV"):
    AudioReader(io.BytesIO(b"words"), name="the upload")


def test_reading_long_file_needs_little_memory(tmp_path):
  program = """
import resource, sys
from tfvq.data.audio_files import AudioReader
reader = AudioReader(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for start in range(0, reader.num_samples, 160_000):
  reader.read(start, start + 160_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
  soundfile.write(tmp_path / "a.flac", np.zeros([5 * 60 * 48_000, 2], np.int16), 48_000)  # 115 MB as floats
  command = [sys.executable, "-c", program, tmp_path / "a.flac"]
  assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < 50_000  # kB


def test_written_wav_is_read_back(tmp_path):
  write_wav(tmp_path / "a.wav", [tone(0.1), np.array([2.0, -2.0])], SAMPLE_RATE_HZ)
  audio = AudioReader(tmp_path / "a.wav").read()
  np.testing.assert_allclose(audio[:-2], tone(0.1), atol=1e-4)
  np.testing.assert_allclose(audio[-2:], [1, -1], atol=1e-4)


def test_reader_keeps_floats_beyond_1():
  audio = AudioReader(io.BytesIO(encoded(100 * tone(0.1), format="WAV", subtype="FLOAT"))).read()
  np.testing.assert_array_equal(audio, 100 * tone(0.1))


def test_reader_rejects_missing_file(tmp_path):
  with pytest.raises(UserError, match="b.wav is not a file"):
    AudioReader(tmp_path / "b.wav")
  with pytest.raises(UserError, match="is not a file"):
    AudioReader(tmp_path)
  with pytest.raises(UserError, match="could not be read .File name too long"):
    AudioReader(tmp_path / ("x" * 300 + ".wav"))


def test_reader_accepts_name_that_is_not_utf_8(tmp_path):
  write_wav(tmp_path / "a.wav", [tone(0.1)], SAMPLE_RATE_HZ)
  path = pathlib.Path(os.fsdecode(bytes(tmp_path / "caf") + b"\xe9.wav"))
  (tmp_path / "a.wav").rename(path)
  assert AudioReader(path).num_samples == 1600


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_reader_rejects_samples_that_are_not_finite(value, tmp_path):
  samples = tone(0.1)
  samples[1000] = value
  soundfile.write(tmp_path / "a.wav", samples, SAMPLE_RATE_HZ, subtype="FLOAT")
  with pytest.raises(UserError, match="holds samples that are not finite"):
    AudioReader(tmp_path / "a.wav").read()


def test_reader_rejects_infinite_channels_of_opposite_sign_without_warning():
  file = encoded(np.tile([np.inf, -np.inf], [1000, 1]), format="WAV", subtype="FLOAT")
  with warnings.catch_warnings(), pytest.raises(UserError, match="holds samples that are not finite"):
    warnings.simplefilter("error")
    AudioReader(io.BytesIO(file)).read()


def test_write_wav_writes_16_bit_mono(tmp_path):
  write_wav(tmp_path / "a.wav", [tone(0.1)], SAMPLE_RATE_HZ)
  with wave.open(str(tmp_path / "a.wav")) as file:
    assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 16_000, 1600)
