import pathlib

import numpy as np
import pytest

from tests.sound import tone
from tfvq.data.audio_files import SAMPLE_RATE_HZ
from tfvq.data.shards import write_shard
from tfvq.data.speech_corpus import SpeechCorpus, level, phone_frames, prepare_corpus, sounding_frames, split_of
from tfvq.data.speech_sources import Recording
from tfvq.errors import UserError
from tfvq.ops.loudness import frame_powers, gain_to_level


def test_silences_are_cut_and_levels_equal():
  loud, quiet = tone(0.5), np.zeros(8000, np.float32)
  kept = sounding_frames(np.concatenate([quiet, loud, quiet, loud, quiet]))
  # Half a second twice, a tenth between them, a twentieth at either end; frames are ten milliseconds.
  expected = np.zeros(250, bool)
  expected[45:105] = expected[145:205] = True
  np.testing.assert_array_equal(kept, expected)
  np.testing.assert_allclose(np.sqrt(np.mean(level(loud) ** 2)), 0.08, rtol=1e-3)
  spike = np.concatenate([np.zeros(99_999), [1.0]])
  assert np.abs(level(spike)).max() < 0.9801
  assert not sounding_frames(quiet).any() and not len(sounding_frames(quiet[:5])) and not len(level(quiet[:0]))


@pytest.mark.parametrize("silence", ["digital", "noise"])
def test_a_recording_that_is_mostly_silent_is_as_loud_as_its_sound(silence, rng):
  sound = (0.2 * rng.normal(size=8000)).astype(np.float32)
  quiet = (0.0004 * rng.normal(size=20 * SAMPLE_RATE_HZ) * (silence == "noise")).astype(np.float32)
  audio = np.concatenate([quiet, sound, quiet])
  assert 50 <= np.count_nonzero(sounding_frames(audio)) <= 61
  np.testing.assert_allclose(gain_to_level(frame_powers(audio)), 0.08 / 0.2, rtol=0.02)


def fake_recordings(num_sentences=60, speakers=("ann", "bob"), broken=()):
  def reader(sentence, speaker):
    def read():
      if (sentence, speaker) in broken:
        raise UserError("it is broken.")
      return tone(1.0 + 0.01 * sentence, frequency_hz=300 if speaker == "ann" else 200)

    return read

  return [
    Recording(f"{speaker}/{sentence:03d}", speaker, reader(sentence, speaker), sentence=f"{sentence:03d}")
    for speaker in speakers
    for sentence in range(num_sentences)
  ]


def test_a_corpus_is_split_by_sentence_and_read_back(tmp_path, capsys):
  prepare_corpus(tmp_path, fake_recordings(broken={(3, "bob")}))
  assert "1 of 120 recordings were left out; the first: bob/003: it is broken." in capsys.readouterr().out
  corpus = SpeechCorpus(tmp_path)
  assert corpus.speakers == ["ann", "bob"]
  for split in ("validation", "held_out"):
    clips = corpus.clips(split)
    assert len(clips) == len(list(clips)) > 1
    assert {clip.speaker for clip in clips} == {0, 1}
    for clip in clips:
      assert split_of(clip.name[4:]) == split
      assert abs(len(clip.audio) / SAMPLE_RATE_HZ - 1 - 0.01 * int(clip.name[4:])) < 0.02
      np.testing.assert_allclose(np.sqrt(np.mean(clip.audio**2)), 0.08, rtol=0.01)
  assert 100 <= corpus.seconds("train") <= 140
  batches = corpus.train(6, 4096, seed=1)
  first = next(iter(batches))
  assert first["audio"].shape == (6, 4096) and first["speaker"].shape == (6,)
  for audio, speaker in zip(first["audio"].numpy(), first["speaker"].numpy(), strict=True):
    peak_hz = np.argmax(np.abs(np.fft.rfft(audio * np.hanning(4096)))) * SAMPLE_RATE_HZ / 4096
    assert abs(peak_hz - (300, 200)[speaker]) < 5  # a crop is its speaker's
  np.testing.assert_array_equal(first["audio"], next(iter(corpus.train(6, 4096, seed=1)))["audio"])
  assert not np.array_equal(first["audio"], next(iter(corpus.train(6, 4096, seed=2)))["audio"])


def test_a_voice_of_few_seconds_is_trained_on_too(tmp_path):
  recordings = fake_recordings(40, ("ann",)) + fake_recordings(3, ("bob",))
  prepare_corpus(tmp_path, recordings)
  corpus = SpeechCorpus(tmp_path)
  stretches = list(corpus.clips("train"))
  assert {clip.speaker for clip in stretches} == {0, 1} and {len(clip.audio) for clip in stretches} == {160_000}
  spoken = sum(split_of(recording.sentence) == "train" for recording in recordings[40:])
  (bobs,) = [clip.audio for clip in stretches if clip.speaker == 1]
  length = sum(len(tone(1 + 0.01 * sentence)) // 160 * 160 for sentence in range(3)[:spoken])
  np.testing.assert_array_equal(bobs[:-length], bobs[length:])


def test_crops_that_the_stretches_cannot_give_are_refused(tmp_path):
  prepare_corpus(tmp_path, fake_recordings())
  corpus = SpeechCorpus(tmp_path)
  assert next(iter(corpus.train(2, 80_000, seed=0)))["audio"].shape == (2, 80_000)
  with pytest.raises(UserError, match="crops of 80001 samples, .* at most 80000 can be had"):
    corpus.train(2, 80_001, seed=0)


def test_a_shard_that_cannot_be_written_is_told(tmp_path):
  with pytest.raises(UserError, match="/dev/full/a.tfrecord could not be written"):
    write_shard(pathlib.Path("/dev/full/a.tfrecord"), [b"record"])
  with pytest.raises(UserError, match="x.tfrecord could not be written: .*too long"):  # TensorFlow's own error
    write_shard(tmp_path / f"{'x' * 240}.tfrecord", [b"record"])


def test_a_damaged_corpus_is_refused(tmp_path):
  prepare_corpus(tmp_path, fake_recordings())
  shard = tmp_path / "train-00000.tfrecord"
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(UserError, match="is not what was written"):
    SpeechCorpus(tmp_path)
  shard.unlink()
  with pytest.raises(UserError, match="is missing"):
    SpeechCorpus(tmp_path)


def test_recordings_of_no_use_are_an_error(tmp_path):
  with pytest.raises(UserError, match="None of the 4 recordings could be used; the first: ann/000: it is broken"):
    prepare_corpus(tmp_path, fake_recordings(4, ("ann",), broken={(index, "ann") for index in range(4)}))
  with pytest.raises(UserError, match="none of the 2 is left for the split 'validation'; give 60 or more"):
    prepare_corpus(tmp_path, fake_recordings(2, ("ann",)))


def test_phones_go_with_their_frames():
  names = ["a"]
  frames = phone_frames(((0.02, "pau"), (0.05, "a"), (0.06, "b")), 8, names)
  assert names == ["a", "b", "pau"]
  np.testing.assert_array_equal(frames[:, 0], [2, 2, 0, 0, 0, 1, 1, 1])
  np.testing.assert_array_equal(frames[:, 1], [2, 2, 2, 2, 2, 0, 0, 0])
  np.testing.assert_array_equal(frames[:, 2], [0, 0, 1, 1, 1, 1, 1, 1])
  np.testing.assert_array_equal(frames[:, 3], [0, 50, 0, 33, 66, 0, 33, 66])
  np.testing.assert_array_equal(frames[:, 4], [2, 2, 3, 3, 3, 3, 3, 3])
  assert phone_frames((), 3, names).shape == (3, 0)


def test_phones_of_a_corpus_stay_with_their_sound(tmp_path):
  """Low tones are called low and high ones high; silences between them are cut."""
  silence = np.zeros(SAMPLE_RATE_HZ // 2, np.float32)
  audio = np.concatenate([silence, tone(0.5, frequency_hz=200), silence, tone(0.5, frequency_hz=2000), silence])
  phones = ((0.5, "pau"), (1.0, "low"), (1.5, "pau"), (2.0, "high"), (2.5, "pau"))
  recordings = [Recording(f"{index:03d}", "ann", lambda: audio, lambda: phones) for index in range(60)]
  prepare_corpus(tmp_path, recordings)
  corpus = SpeechCorpus(tmp_path)
  assert corpus.phones == ["high", "low", "pau"]
  batch = next(iter(corpus.train(8, 3200, seed=0, with_phones=True)))
  assert batch["phones"].shape == (8, 20, 5)
  clip = next(iter(corpus.clips("held_out")))
  pairs = [(clip.audio, clip.phones), *zip(batch["audio"].numpy(), batch["phones"].numpy(), strict=True)]
  seen = set()
  for sound, frames in pairs:
    for frame, fields in zip(sound.reshape(-1, 160), frames, strict=True):
      crossings = np.sum(np.diff(np.sign(frame)) != 0)
      if fields[0] != 2:
        assert (crossings > 20) == (fields[0] == 0)
      seen.add(fields[0])
  assert seen == {0, 1, 2}
  with pytest.raises(UserError, match="not made of frames"):
    corpus.train(8, 1000, seed=0, with_phones=True)


def test_a_recording_without_phones_among_labelled_ones_is_left_out(tmp_path, capsys):
  phones = lambda index: () if index == 7 else ((1.0, "a"),)
  recordings = [
    Recording(f"{index:03d}", "ann", lambda: tone(1.0), lambda index=index: phones(index)) for index in range(60)
  ]
  prepare_corpus(tmp_path, recordings)
  assert "1 of 60 recordings were left out; the first: 007: its phones are not known" in capsys.readouterr().out
  assert SpeechCorpus(tmp_path).phones == ["a"]
