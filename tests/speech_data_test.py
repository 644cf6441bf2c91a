import pathlib
import struct
import types
import wave

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from tfvq.configs import common
from tfvq.data import debian
from tfvq.data.audio_files import SAMPLE_RATE_HZ, AudioReader, resampled, write_wav
from tfvq.data.espeak import sentences
from tfvq.data.shards import write_shard
from tfvq.data.speech_corpus import SpeechCorpus, level, phone_frames, prepare_corpus, sounding_frames, split_of
from tfvq.data.speech_sources import Recording, find_recordings
from tfvq.errors import UserError
from tfvq.ops.loudness import frame_powers, gain_to_level


def tone(seconds, rate_hz=SAMPLE_RATE_HZ, frequency_hz=440.0):
  return (0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


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


def test_samples_that_are_no_numbers_are_told(tmp_path):
  soundfile.write(tmp_path / "a.wav", np.full(1000, np.nan, np.float32), SAMPLE_RATE_HZ, subtype="FLOAT")
  with pytest.raises(UserError, match="not finite"):
    AudioReader(tmp_path / "a.wav").read()


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


def test_a_folders_sub_folders_are_its_speakers(tmp_path):
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
  assert abs(len(recordings[0].read()) - 4800) < 20
  with pytest.raises(UserError, match="no audio file"):
    (tmp_path / "empty").mkdir()
    find_recordings(common.speech_data(source="folder", folder=str(tmp_path / "empty")))
  with pytest.raises(UserError, match="needs --config.data.folder"):
    find_recordings(common.speech_data(source="folder"))


def test_debian_packages_hold_the_recordings(tmp_path, monkeypatch):
  """The layouts of the three packages, with files of this test in place of theirs."""
  import G722

  monkeypatch.setattr(debian.shutil, "which", lambda program: None)  # nothing is to be fetched
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
  write_wav(read / "ru_0001.wav", [tone(0.5)])
  expected = {
    "asterisk": (("en",), {("en/digits/1", "en-es"), ("en/hello", "en-es")}),
    "fillets": (("cs",), {("cs/cave/cav-v-one", "cs-big"), ("cs/cave/cav-m-two", "cs-small")}),
    "festvox_ru": ((), {("ru_0001", "nsh")}),
  }
  for source, (languages, names) in expected.items():
    recordings = find_recordings(common.speech_data(source=source, languages=languages, cache=str(tmp_path)))
    assert {(recording.name, recording.speaker) for recording in recordings} == names
    for recording in recordings:
      audio = recording.read()
      np.testing.assert_allclose(np.std(audio[1000:7000]), 0.3 / np.sqrt(2), rtol=0.1)
  assert recordings[0].phones() == ()
  (read.parent / "lab").mkdir()
  (read.parent / "lab" / "ru_0001.lab").write_text("separator ;\n#\n0.2 125 pau\n  0.5 125 a\n\n")
  assert recordings[0].phones() == ((0.2, "pau"), (0.5, "a"))
  with pytest.raises(UserError, match="fillets has no language 'en'; choose of cs, nl"):
    find_recordings(common.speech_data(source="fillets", languages=("en",), cache=str(tmp_path)))
  with pytest.raises(UserError, match="package fillets-ng-data-nl needs apt-get"):  # all languages by default
    find_recordings(common.speech_data(source="fillets", cache=str(tmp_path)))
  with pytest.raises(UserError, match="needs apt-get"):
    find_recordings(common.speech_data(source="asterisk", languages=("fr",), cache=str(tmp_path)))


@pytest.mark.parametrize(("name", "rate_hz"), [("vctk", 48_000), ("librispeech", 16_000)])
def test_tfds_sets_have_speakers(name, rate_hz, monkeypatch):
  first = {"vctk": "train", "librispeech": "train_clean100"}[name]
  # What is told of a set once it is downloaded.
  monkeypatch.setattr(
    tfds.core.DatasetInfo, "splits", dict.fromkeys((first, "test"), types.SimpleNamespace(num_bytes=0))
  )
  with tfds.testing.mock_data(num_examples=4):
    settings = {"source": "tfds", "name": name, "sample_rate_hz": rate_hz}
    recordings = find_recordings(common.speech_data(**settings))
    assert len(recordings) == 2 * 4
    for recording in recordings:
      assert recording.name and recording.read().dtype == np.float32
      assert recording.speaker.isdigit() if name == "librispeech" else recording.speaker.startswith("p")
    assert len(find_recordings(common.speech_data(splits=(first,), **settings))) == 4
    with pytest.raises(UserError, match=f"{name} has no split 'all'; choose of {first}, test"):
      find_recordings(common.speech_data(splits=("all",), **settings))
    with pytest.raises(UserError, match="mnist does not hold speech with its speakers"):
      find_recordings(common.speech_data(source="tfds", name="mnist"))
  with pytest.raises(UserError, match="data set nonesuch"):
    find_recordings(common.speech_data(source="tfds", name="nonesuch"))


def test_resampling_keeps_a_tone():
  audio = resampled(tone(1.0, 22_050), 22_050)
  assert abs(len(audio) - SAMPLE_RATE_HZ) <= 2
  # The resampler may delay by some samples.
  errors = [np.abs(audio[2000 + delay : 14_000 + delay] - tone(1.0)[2000:14_000]).max() for delay in range(-8, 9)]
  assert min(errors) < 0.03


def test_sentences_are_all_different():
  assert len(set(sentences(1440))) == 1440 and sentences(1)[0].startswith("The old captain")


def test_espeak_speaks(tmp_path):
  data = common.speech_data(source="espeak", voices=("en-us+m1", "en-us+f2"), num_sentences=2)
  recordings = find_recordings(data)
  lengths = [len(recording.read()) for recording in recordings]
  assert len(recordings) == 4 and min(lengths) > SAMPLE_RATE_HZ and max(lengths) < 8 * SAMPLE_RATE_HZ
  for recording, length in zip(recordings, lengths, strict=True):
    ends, names = zip(*recording.phones(), strict=True)
    assert np.all(np.diff(ends) >= 0) and abs(ends[-1] - length / SAMPLE_RATE_HZ) < 1e-4  # one rendering's
    assert len(set(names)) > 10 and 0.03 < ends[-1] / len(ends) < 0.15  # seconds per phone
  with pytest.raises(UserError, match="has no voice 'nobody'"):
    find_recordings(common.speech_data(source="espeak", voices=("nobody",)))[0].read()


def test_wav_files_are_16_bit_mono(tmp_path):
  write_wav(tmp_path / "a.wav", [tone(0.1)])
  with wave.open(str(tmp_path / "a.wav")) as file:
    assert (file.getnchannels(), file.getsampwidth(), file.getframerate(), file.getnframes()) == (1, 2, 16_000, 1600)


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


def test_the_piano_plays_its_notes():
  data = common.speech_data(source="piano", composers=("bach",))
  recordings = find_recordings(data)
  assert len(recordings) > 300 and recordings[0].speaker == "piano"
  audio = next(recording for recording in recordings if recording.name == "bach/bwv66.6").read()
  # 36 quarters of 0.6 s; the chorale begins with C#5, E4, A3 and A3 together.
  assert 20 * SAMPLE_RATE_HZ < len(audio) < 24 * SAMPLE_RATE_HZ
  spectrum = np.abs(np.fft.rfft(audio[800:4800] * np.hanning(4000), 2**15))
  frequencies_hz = np.arange(len(spectrum)) * SAMPLE_RATE_HZ / 2**15
  for frequency_hz in (220.0, 329.6, 554.4):
    near, around = np.abs(frequencies_hz - frequency_hz) < 8, np.abs(frequencies_hz - frequency_hz) < 60
    assert spectrum[near].max() == spectrum[around].max()
  with pytest.raises(UserError, match="no score of 'nobody'"):
    find_recordings(common.speech_data(source="piano", composers=("nobody",)))
