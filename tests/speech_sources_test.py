import os
import types

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from tests.sound import SAMPLE_RATE_HZ, tone
from tfvq.configs import common
from tfvq.data import debian
from tfvq.data.audio_files import write_wav
from tfvq.data.espeak import sentences
from tfvq.data.speech_sources import find_recordings
from tfvq.errors import UserError


def test_sub_folders_are_speakers(tmp_path):
  for speaker in ("ann", "bob"):
    (tmp_path / speaker).mkdir()
    for index in range(2):
      soundfile.write(tmp_path / speaker / f"{index}.flac", tone(0.3, 22_050), 22_050)
  (tmp_path / "bob" / "notes.txt").write_text("no audio")
  recordings = find_recordings(common.speech_data(source="folder", folder=str(tmp_path)))
  assert [(recording.speaker, recording.name, recording.sentence) for recording in recordings] == [
    ("ann", "ann/0", "0"),
    ("ann", "ann/1", "1"),
    ("bob", "bob/0", "0"),
    ("bob", "bob/1", "1"),
  ]
  audio, phones = recordings[0].read()
  assert abs(len(audio) - 4800) < 20 and phones == ()
  (tmp_path / "linked").mkdir()
  (tmp_path / "linked" / "carl").symlink_to(tmp_path / "ann")
  (tmp_path / "ann" / "1.flac").rename(tmp_path / "ann" / os.fsdecode(b"caf\xe9.flac"))
  recordings = find_recordings(common.speech_data(source="folder", folder=str(tmp_path / "linked")))
  assert [recording.name for recording in recordings] == ["carl/0", "carl/caf\ufffd"]
  assert abs(len(recordings[1].read()[0]) - 4800) < 20
  with pytest.raises(UserError, match="no audio file"):
    (tmp_path / "empty").mkdir()
    find_recordings(common.speech_data(source="folder", folder=str(tmp_path / "empty")))
  with pytest.raises(UserError, match="needs --config.data.folder"):
    find_recordings(common.speech_data(source="folder"))


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100])
def test_debian_packages_contain_recordings(rate_hz, tmp_path, monkeypatch):
  """Uses the layouts of the three packages with other files."""
  import G722

  monkeypatch.setattr(debian.shutil, "which", lambda program: None)  # nothing may be downloaded
  sounds = tmp_path / "asterisk-core-sounds-en-g722/usr/share/asterisk/sounds/en_US_f_Allison"
  (sounds / "digits").mkdir(parents=True)
  (sounds / "silence").mkdir()
  encoded = G722.G722(SAMPLE_RATE_HZ, 64_000).encode((tone(0.5) * 32767).astype(np.int16))
  for name in ("digits/1", "hello", "silence/1", "beep"):
    (sounds / f"{name}.g722").write_bytes(encoded)
  dialogue = tmp_path / "fillets-ng-data-cs/usr/share/games/fillets-ng/sound/cave/cs"
  dialogue.mkdir(parents=True)
  soundfile.write(dialogue / "cav-v-one.ogg", tone(0.5, 22_050), 22_050)
  soundfile.write(dialogue / "cav-m-two.ogg", tone(0.5, 22_050), 22_050)
  read = tmp_path / "festvox-ru/usr/share/festival/voices/russian/msu_ru_nsh_clunits/wav"
  read.mkdir(parents=True)
  write_wav(read / "ru_0001.wav", [tone(0.5)], SAMPLE_RATE_HZ)
  expected = {
    "asterisk": (("en",), {("en/digits/1", "en-es"), ("en/hello", "en-es")}),
    "fillets": (("cs",), {("cs/cave/cav-v-one", "cs-big"), ("cs/cave/cav-m-two", "cs-small")}),
    "festvox_ru": ((), {("ru_0001", "nsh")}),
  }
  for source, (languages, names) in expected.items():
    settings = {"source": source, "languages": languages, "cache": str(tmp_path), "sample_rate_hz": rate_hz}
    recordings = find_recordings(common.speech_data(**settings))
    assert {(recording.name, recording.speaker) for recording in recordings} == names
    for recording in recordings:
      audio, phones = recording.read()
      assert phones == () and abs(len(audio) - rate_hz / 2) <= rate_hz / 100
      inside = audio[rate_hz // 16 : rate_hz // 16 + 3 * rate_hz // 8]
      np.testing.assert_allclose(np.std(inside), 0.3 / np.sqrt(2), rtol=0.1)
      peak = np.argmax(np.abs(np.fft.rfft(inside * np.hanning(len(inside)))))
      assert abs(peak * rate_hz / len(inside) - 440) < 3
  (read.parent / "lab").mkdir()
  (read.parent / "lab" / "ru_0001.lab").write_text("separator ;\n#\n0.2 125 pau\n  0.5 125 a\n\n")
  assert recordings[0].read()[1] == ((0.2, "pau"), (0.5, "a"))
  with pytest.raises(UserError, match="fillets has no language 'en'; choose from cs, nl"):
    find_recordings(common.speech_data(source="fillets", languages=("en",), cache=str(tmp_path)))
  with pytest.raises(UserError, match="package fillets-ng-data-nl needs apt-get"):  # all languages by default
    find_recordings(common.speech_data(source="fillets", cache=str(tmp_path)))
  with pytest.raises(UserError, match="needs apt-get"):
    find_recordings(common.speech_data(source="asterisk", languages=("fr",), cache=str(tmp_path)))


@pytest.mark.parametrize(("name", "rate_hz"), [("vctk", 48_000), ("librispeech", 16_000)])
def test_tfds_recordings_have_speakers(name, rate_hz, monkeypatch):
  first = {"vctk": "train", "librispeech": "train_clean100"}[name]
  # The metadata of a set that has been downloaded.
  monkeypatch.setattr(
    tfds.core.DatasetInfo, "splits", dict.fromkeys((first, "test"), types.SimpleNamespace(num_bytes=0))
  )
  with tfds.testing.mock_data(num_examples=4):
    settings = {"source": "tfds", "name": name, "source_sample_rate_hz": rate_hz}
    recordings = find_recordings(common.speech_data(**settings))
    assert len(recordings) == 2 * 4
    for recording in recordings:
      audio, _ = recording.read()
      assert recording.name and audio.dtype == np.float32
      assert recording.speaker.isdigit() if name == "librispeech" else recording.speaker.startswith("p")
    assert len(find_recordings(common.speech_data(splits=(first,), **settings))) == 4
    with pytest.raises(UserError, match=f"{name} has no split 'all'; choose from {first}, test"):
      find_recordings(common.speech_data(splits=("all",), **settings))
    with pytest.raises(UserError, match="mnist does not contain speech with speakers"):
      find_recordings(common.speech_data(source="tfds", name="mnist"))
  with pytest.raises(UserError, match="data set nonesuch"):
    find_recordings(common.speech_data(source="tfds", name="nonesuch"))


def test_sentences_are_distinct():
  assert len(set(sentences(1440))) == 1440 and sentences(1)[0].startswith("The old captain")


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100])
def test_espeak_returns_speech_and_phones(rate_hz):
  data = common.speech_data(source="espeak", voices=("en-us+m1", "en-us+f2"), num_sentences=2, sample_rate_hz=rate_hz)
  recordings = find_recordings(data)
  sounds = [recording.read() for recording in recordings]
  lengths = [len(audio) for audio, _ in sounds]
  assert len(recordings) == 4 and min(lengths) > rate_hz and max(lengths) < 8 * rate_hz
  for audio, phones in sounds:
    ends, names = zip(*phones, strict=True)
    # Some voices vary in speed between calls: the phones must be those of this audio.
    assert np.all(np.diff(ends) >= 0) and abs(ends[-1] - len(audio) / rate_hz) < 2 / rate_hz
    assert len(set(names)) > 10 and 0.03 < ends[-1] / len(ends) < 0.15  # seconds per phone
  with pytest.raises(UserError, match="has no voice 'nobody'"):
    find_recordings(common.speech_data(source="espeak", voices=("nobody",)))[0].read()


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 44_100])
def test_play_plays_notes_of_score(rate_hz):
  data = common.speech_data(source="piano", composers=("bach",), sample_rate_hz=rate_hz)
  recordings = find_recordings(data)
  assert len(recordings) > 300 and recordings[0].speaker == "piano"
  assert len({recording.name for recording in recordings}) == len(recordings)
  audio, _ = next(recording for recording in recordings if recording.name == "bach/bwv66.6").read()
  # 36 quarters of 0.6 s; the chorale begins with C#5, E4, A3 and A3 together.
  assert 20 * rate_hz < len(audio) < 24 * rate_hz
  part = audio[rate_hz // 20 :][: rate_hz // 4]
  spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), 2 * rate_hz))
  frequencies_hz = np.arange(len(spectrum)) / 2
  for frequency_hz in (220.0, 329.6, 554.4):
    near, around = np.abs(frequencies_hz - frequency_hz) < 8, np.abs(frequencies_hz - frequency_hz) < 60
    assert spectrum[near].max() == spectrum[around].max()
  with pytest.raises(UserError, match="no score of 'nobody'"):
    find_recordings(common.speech_data(source="piano", composers=("nobody",)))
