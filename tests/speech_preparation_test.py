import os
import time

import numpy as np
import pytest
import soundfile

from tests.sound import SAMPLE_RATE_HZ, fake_recordings, tone
from tfvq.configs import common
from tfvq.data.speech_corpus import SpeechCorpus
from tfvq.data.speech_preparation import _read, frames_to_keep, level, phone_frames, prepare_corpus, split_of
from tfvq.data.speech_sources import Recording, find_recordings
from tfvq.errors import UserError
from tfvq.ops.loudness import frame_powers, gain_to_level


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 22_100, 44_100, 48_000])
def test_silences_are_shortened_and_levels_equalized(rate_hz):
  loud, quiet = tone(0.5, rate_hz), np.zeros(rate_hz // 2, np.float32)
  kept = frames_to_keep(np.concatenate([quiet, loud, quiet, loud, quiet]), rate_hz)
  # Twice 0.5 s of sound, with 0.1 s between them and 0.05 s at either end; frames have 10 ms.
  expected = np.zeros(250, bool)
  expected[45:105] = expected[145:205] = True
  np.testing.assert_array_equal(kept, expected)
  np.testing.assert_allclose(np.sqrt(np.mean(level(loud, rate_hz) ** 2)), 0.08, rtol=1e-3)
  spike = np.concatenate([np.zeros(99_999), [1.0]])
  assert np.abs(level(spike, rate_hz)).max() < 0.9801
  assert not frames_to_keep(quiet, rate_hz).any() and not len(frames_to_keep(quiet[:5], rate_hz))
  assert not len(level(quiet[:0], rate_hz))


@pytest.mark.parametrize("silence", ["digital", "noise"])
def test_level_ignores_silence(silence, rng):
  sound = (0.2 * rng.normal(size=8000)).astype(np.float32)
  quiet = (0.0004 * rng.normal(size=20 * SAMPLE_RATE_HZ) * (silence == "noise")).astype(np.float32)
  audio = np.concatenate([quiet, sound, quiet])
  assert 50 <= np.count_nonzero(frames_to_keep(audio, SAMPLE_RATE_HZ)) <= 61
  np.testing.assert_allclose(gain_to_level(frame_powers(audio, SAMPLE_RATE_HZ)), 0.08 / 0.2, rtol=0.02)


def test_short_voice_fills_one_segment(tmp_path):
  recordings = fake_recordings(40, ("ann",)) + fake_recordings(3, ("bob",))
  prepare_corpus(tmp_path, recordings, SAMPLE_RATE_HZ)
  corpus = SpeechCorpus(tmp_path)
  segments = list(corpus.clips("train"))
  assert {clip.speaker for clip in segments} == {0, 1} and {len(clip.audio) for clip in segments} == {160_000}
  spoken = sum(split_of(recording.sentence) == "train" for recording in recordings[40:])
  (bobs,) = [clip.audio for clip in segments if clip.speaker == 1]
  length = sum(len(tone(1 + 0.01 * sentence)) // 160 * 160 for sentence in range(3)[:spoken])
  np.testing.assert_array_equal(bobs[:-length], bobs[length:])


def test_unusable_recordings_raise_error(tmp_path):
  with pytest.raises(UserError, match="None of the 4 recordings could be used; the first: ann/000: it is broken"):
    prepare_corpus(
      tmp_path, fake_recordings(4, ("ann",), broken={(index, "ann") for index in range(4)}), SAMPLE_RATE_HZ
    )
  with pytest.raises(UserError, match="none of the 2 is in the split 'validation'; give 60 or more"):
    prepare_corpus(tmp_path, fake_recordings(2, ("ann",)), SAMPLE_RATE_HZ)


@pytest.mark.parametrize("format", ["wav", "ogg"])
def test_recordings_keep_their_own_audio(format, tmp_path):
  """Prepares tones that are named by their frequencies."""
  frequencies_hz = np.arange(200, 4200, 10)
  (tmp_path / "in" / "ann").mkdir(parents=True)
  for frequency_hz in frequencies_hz:
    samples = tone(0.5, 44_100, frequency_hz)
    soundfile.write(tmp_path / "in" / "ann" / f"{frequency_hz:04d}.{format}", samples, 44_100)
  recordings = find_recordings(common.speech_data(source="folder", folder=str(tmp_path / "in")))
  prepare_corpus(tmp_path / "out", recordings, SAMPLE_RATE_HZ)
  corpus = SpeechCorpus(tmp_path / "out")
  peak_hz = lambda audio: np.argmax(np.abs(np.fft.rfft(audio * np.hanning(len(audio))))) * SAMPLE_RATE_HZ / len(audio)
  clips = [clip for split in ("validation", "held_out") for clip in corpus.clips(split)]
  assert len(clips) > 30
  for clip in clips:
    assert abs(peak_hz(clip.audio) - int(clip.name[4:])) <= 2
  # The others are joined into segments, in the order of their names.
  expected = [hertz for hertz in frequencies_hz if split_of(f"{hertz:04d}") == "train"]
  segments = np.concatenate([clip.audio for clip in corpus.clips("train")])
  for frequency_hz, audio in zip(expected, segments[: 8000 * len(expected)].reshape(-1, 8000), strict=True):
    assert abs(peak_hz(audio) - frequency_hz) <= 2


def test_recordings_are_read_in_order_with_limited_lookahead():
  """Some recordings take longer to read, and together they do not fit into memory."""
  num_taken = 0

  def recordings():
    nonlocal num_taken
    for index in range(200):
      num_taken += 1
      yield Recording(str(index), "ann", lambda index=index: slow_tone(0.01 * (index % 3 == 0)))

  def slow_tone(seconds):
    time.sleep(seconds)
    return tone(0.3), ()

  for index, (recording, audio, *_) in enumerate(_read(recordings(), SAMPLE_RATE_HZ)):
    assert recording.name == str(index) and len(audio) == 4800
    assert num_taken - index <= 2 * os.cpu_count() + 1
  assert num_taken == 200


def test_unexpected_error_ends_preparation(tmp_path):
  recordings = fake_recordings()
  recordings[7] = Recording("seven", "ann", lambda: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    prepare_corpus(tmp_path, recordings, SAMPLE_RATE_HZ)


def test_phone_frames_match_phones():
  names = ["a"]
  frames = phone_frames(((0.02, "pau"), (0.05, "a"), (0.06, "b")), 8, names)
  assert names == ["a", "b", "pau"]
  np.testing.assert_array_equal(frames[:, 0], [2, 2, 0, 0, 0, 1, 1, 1])
  np.testing.assert_array_equal(frames[:, 1], [2, 2, 2, 2, 2, 0, 0, 0])
  np.testing.assert_array_equal(frames[:, 2], [0, 0, 1, 1, 1, 1, 1, 1])
  np.testing.assert_array_equal(frames[:, 3], [0, 50, 0, 33, 66, 0, 33, 66])
  np.testing.assert_array_equal(frames[:, 4], [2, 2, 3, 3, 3, 3, 3, 3])
  assert phone_frames((), 3, names).shape == (3, 0)


def test_recording_without_phones_among_labelled_ones_is_left_out(tmp_path, capsys):
  phones = lambda index: () if index == 7 else ((1.0, "a"),)
  recordings = [Recording(f"{index:03d}", "ann", lambda index=index: (tone(1.0), phones(index))) for index in range(60)]
  prepare_corpus(tmp_path, recordings, SAMPLE_RATE_HZ)
  assert "1 of 60 recordings were left out; the first: 007: its phones are not known" in capsys.readouterr().out
  assert SpeechCorpus(tmp_path).phones == ["a"]
