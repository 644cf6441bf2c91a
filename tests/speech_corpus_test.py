import json
import pathlib

import numpy as np
import pytest

from tests.sound import SAMPLE_RATE_HZ, fake_recordings, tone
from tfvq.data.shards import write_shard
from tfvq.data.speech_corpus import SpeechCorpus
from tfvq.data.speech_preparation import prepare_corpus, split_of
from tfvq.data.speech_sources import Recording
from tfvq.errors import UserError


def test_corpus_is_split_by_sentence_and_read_back(tmp_path, capsys):
  prepare_corpus(tmp_path, fake_recordings(broken={(3, "bob")}), SAMPLE_RATE_HZ)
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
    assert abs(peak_hz - (300, 200)[speaker]) < 5  # audio and speaker of a crop belong together
  np.testing.assert_array_equal(first["audio"], next(iter(corpus.train(6, 4096, seed=1)))["audio"])
  assert not np.array_equal(first["audio"], next(iter(corpus.train(6, 4096, seed=2)))["audio"])


def test_too_long_crops_are_rejected(tmp_path):
  prepare_corpus(tmp_path, fake_recordings(), SAMPLE_RATE_HZ)
  corpus = SpeechCorpus(tmp_path)
  assert next(iter(corpus.train(2, 80_000, seed=0)))["audio"].shape == (2, 80_000)
  with pytest.raises(UserError, match="crops of 80001 samples, .* at most 80000 are possible"):
    corpus.train(2, 80_001, seed=0)


def test_unwritable_shard_is_reported(tmp_path):
  with pytest.raises(UserError, match="/dev/full/a.tfrecord could not be written"):
    write_shard(pathlib.Path("/dev/full/a.tfrecord"), [b"record"])
  with pytest.raises(UserError, match="x.tfrecord could not be written .*too long"):
    write_shard(tmp_path / f"{'x' * 250}.tfrecord", [b"record"])


def test_damaged_corpus_is_rejected(tmp_path):
  prepare_corpus(tmp_path, fake_recordings(), SAMPLE_RATE_HZ)
  shard = tmp_path / "train-00000.tfrecord"
  shard.write_bytes(shard.read_bytes()[:-1])
  with pytest.raises(UserError, match="has changed since it was written"):
    SpeechCorpus(tmp_path)
  shard.unlink()
  with pytest.raises(UserError, match="is missing"):
    SpeechCorpus(tmp_path)


def test_earlier_version_of_corpus_is_rejected(tmp_path):
  prepare_corpus(tmp_path / "data", fake_recordings(), SAMPLE_RATE_HZ)
  manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
  (tmp_path / "data" / "manifest.json").write_text(json.dumps({**manifest, "version": 2}))
  sentence = f"contains a corpus of version 2, but this program reads version 3: delete {tmp_path}/data and run"
  with pytest.raises(UserError, match=sentence):
    SpeechCorpus(tmp_path / "data")


def test_phones_of_crops_match_their_audio(tmp_path):
  """The phones are names of low and high tones; silences between them are cut."""
  silence = np.zeros(SAMPLE_RATE_HZ // 2, np.float32)
  audio = np.concatenate([silence, tone(0.5, frequency_hz=200), silence, tone(0.5, frequency_hz=2000), silence])
  phones = ((0.5, "pau"), (1.0, "low"), (1.5, "pau"), (2.0, "high"), (2.5, "pau"))
  recordings = [Recording(f"{index:03d}", "ann", lambda: (audio, phones)) for index in range(60)]
  prepare_corpus(tmp_path, recordings, SAMPLE_RATE_HZ)
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
  with pytest.raises(UserError, match="not a multiple of 160"):
    corpus.train(8, 1000, seed=0, with_phones=True)
