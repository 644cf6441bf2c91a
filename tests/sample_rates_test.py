"""Data, models and programs at other sample rates than 16 kHz."""

import base64
import io
import re
import shutil
import subprocess
import sys
import wave

import numpy as np
import pytest
import soundfile

from export.device import SpeechCodec as DeviceCodec
from export.device.__main__ import main as device
from export.exporter import export
from tests.conftest import shared_folder
from tests.sound import fake_recordings, modulated_noise, tone
from tests.tiny import tiny
from tfvq.configs import common
from tfvq.data.audio_files import write_wav
from tfvq.data.speech_corpus import SpeechCorpus
from tfvq.data.speech_preparation import prepare_corpus
from tfvq.data.speech_sources import find_recordings
from tfvq.errors import UserError
from tfvq.models import SpeechVQVAE
from tfvq.models.speech_codec import SpeechCodec
from tfvq.ops.loudness import frame_powers, gain_to_level
from tfvq.release import load_released, write_released
from tfvq.tasks.speech import build_speech_vqvae
from tfvq.tasks.stages import make_task, open_task, run_stages

STRIDES = {8000: (2,) * 5, 48_000: (2,) * 6 + (3,)}  # 4 ms a frame


def speech_config(rate_hz):
  """The config of a tiny system of a sample rate."""
  config = tiny("speech")
  config.data.sample_rate_hz = rate_hz
  config.autoencoder.strides = STRIDES[rate_hz]
  config.data.crop_samples = 16 * int(np.prod(STRIDES[rate_hz]))
  config.autoencoder.update({"encoder_dilations": (), "condition_dilations": ()})
  config.autoencoder.decoder.num_stacks = 1
  del config.train.unquantized, config.train.spectral
  for settings in config.train.values():
    settings.update({"steps": 2, "optimizer": "adam"})
  return config


@pytest.fixture(scope="module", params=STRIDES)
def system(request, tmp_path_factory):
  """A trained autoencoder, and its codec in `exported`."""

  def make(folder):
    task = make_task(speech_config(request.param), folder)
    run_stages(task, "data")
    run_stages(task, "autoencoder")
    export(task, folder / "exported", ("tflite",), ("none",))

  return open_task(shared_folder(f"speech_at_{request.param}", tmp_path_factory, make))


def test_system_encodes_and_decodes_in_keras_and_on_device(system, rng):
  rate_hz, hop_samples = system.config.data.sample_rate_hz, int(np.prod(system.config.autoencoder.strides))
  model = system.autoencoder
  assert system.corpus.sample_rate_hz == model.sample_rate_hz == model.spectral.log_mel.sample_rate_hz == rate_hz
  (log_mel,) = [layer for layer in model.encoder.layers if layer.name.startswith("log_mel")]
  assert log_mel.sample_rate_hz == rate_hz and log_mel.window_samples == rate_hz // 40
  codec = SpeechCodec(model, frames_per_part=25, jit_compile=False)
  on_device = DeviceCodec(system.workdir.path / "exported" / "tflite" / "none")
  assert codec.sample_rate_hz == on_device.sample_rate_hz == rate_hz
  assert system.export_facts()["codes_per_second"] == 2 * 250
  audio = modulated_noise(rate_hz // 2, rng)
  codes = on_device.encode(audio)
  assert codes.shape == (125, 2)
  np.testing.assert_array_equal(codes, codec.encode(audio))
  np.testing.assert_allclose(on_device.gain_of(audio), codec.gain_of(audio), rtol=1e-6)
  spoken = on_device.decode(codes, temperature=0)
  # Without noise both give the same speech; the last samples depend on how it is cut into parts.
  reference = codec.decode(codes, temperature=0)
  np.testing.assert_allclose(spoken[:-hop_samples], reference[:-hop_samples], atol=1e-4)
  assert spoken.shape == (125 * hop_samples,)


def test_device_commands_keep_rate_of_model(system, tmp_path, capsys):
  rate_hz, model = system.config.data.sample_rate_hz, f"--model={system.workdir.path / 'exported' / 'tflite' / 'none'}"
  write_wav(tmp_path / "in.wav", [tone(0.2, rate_hz)], rate_hz)
  assert device(["encode", str(tmp_path / "in.wav"), str(tmp_path / "a.codes"), model]) == 0
  assert device(["decode", str(tmp_path / "a.codes"), str(tmp_path / "out.wav"), model]) == 0
  with wave.open(str(tmp_path / "out.wav")) as file:
    assert (file.getframerate(), file.getnframes()) == (rate_hz, rate_hz // 5)
  write_wav(tmp_path / "16.wav", [tone(0.2)], 16_000)
  assert device(["encode", str(tmp_path / "16.wav"), str(tmp_path / "b.codes"), model]) == 2
  sentence = f"it has 16000 Hz, 1 channel, 16 bits: give a WAV file of {rate_hz} Hz, mono, 16 bits."
  assert sentence in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("system", [8000], indirect=True)
def test_all_stages_and_released_model_keep_rate(system, tmp_path):
  rate_hz = system.config.data.sample_rate_hz
  shutil.copytree(system.workdir.path, tmp_path / "run")
  task = open_task(tmp_path / "run")
  run_stages(task, "all")
  for path in (tmp_path / "run" / "samples").glob("*.wav"):
    assert soundfile.info(path).samplerate == rate_hz
  check_players(tmp_path / "run" / "report.html", rate_hz, 8)
  released = tmp_path / "speech.keras"
  write_released(task, released)
  assert load_released(released)[0].sample_rate_hz == rate_hz
  soundfile.write(tmp_path / "in.flac", tone(0.3, 44_100), 44_100)
  arguments = (tmp_path / "in.flac", tmp_path / "out.wav", f"--model={released}")
  subprocess.run([sys.executable, "-m", "tfvq.reconstruct", *arguments], check=True, capture_output=True)
  info = soundfile.info(tmp_path / "out.wav")
  assert (info.samplerate, info.frames) == (rate_hz, 3 * rate_hz // 10)


def test_wavenet_of_44_khz_runs_through_every_stage(tmp_path):
  """The sub-bands need not divide a second, nor a frame, of 441 samples."""
  config = tiny("wavenet")
  config.data.sample_rate_hz = 44_100
  config.samples.seconds = 2
  config.train.prior.update({"steps": 2, "optimizer": "adam"})
  run_stages(make_task(config, tmp_path), "all")
  paths = list((tmp_path / "samples").glob("*.wav"))
  assert len(paths) == 2
  for path in paths:
    assert (soundfile.info(path).samplerate, soundfile.info(path).frames) == (44_100, 88_200)
  check_players(tmp_path / "report.html", 44_100, 2)


def check_players(page, rate_hz, num):
  sounds = re.findall(r"data:audio/wav;base64,([\w+/=]+)", page.read_text())
  assert len(sounds) == num
  for sound in sounds:
    assert soundfile.info(io.BytesIO(base64.b64decode(sound))).samplerate == rate_hz


@pytest.mark.parametrize("rate_hz", [8000, 22_100, 44_100, 48_000])
def test_tones_keep_their_frequency_from_reader_to_corpus_to_writer(rate_hz, tmp_path):
  """Prepares tones of files of several rates, named by their frequencies."""
  (tmp_path / "in" / "ann").mkdir(parents=True)
  for index, frequency_hz in enumerate(range(200, 3800, 40)):
    file_rate_hz = (8000, 16_000, 22_050, 44_100, 48_000)[index % 5]
    path = tmp_path / "in" / "ann" / f"{frequency_hz:04d}.flac"
    soundfile.write(path, tone(0.5, file_rate_hz, frequency_hz), file_rate_hz)
  data = common.speech_data(source="folder", folder=str(tmp_path / "in"), sample_rate_hz=rate_hz)
  prepare_corpus(tmp_path / "out", find_recordings(data), rate_hz)
  corpus = SpeechCorpus(tmp_path / "out")
  assert (corpus.sample_rate_hz, corpus.frame_samples) == (rate_hz, rate_hz // 100)
  clips = [clip for split in ("validation", "held_out") for clip in corpus.clips(split)]
  assert len(clips) > 5
  for clip in clips:
    assert abs(len(clip.audio) - rate_hz / 2) <= rate_hz / 100
    write_wav(tmp_path / "a.wav", [clip.audio], corpus.sample_rate_hz)
    audio, written_rate_hz = soundfile.read(tmp_path / "a.wav")
    assert written_rate_hz == rate_hz
    peak = np.argmax(np.abs(np.fft.rfft(audio * np.hanning(len(audio)))))
    assert abs(peak * rate_hz / len(audio) - int(clip.name[4:])) <= 2
  segments = list(corpus.clips("train"))
  assert {len(clip.audio) for clip in segments} == {10 * rate_hz}
  assert corpus.seconds("train") == 10 * len(segments)
  assert next(iter(corpus.train(2, rate_hz // 4, seed=0)))["audio"].shape == (2, rate_hz // 4)


@pytest.mark.parametrize("rate_hz", [8000, 44_100])
def test_gain_of_long_recording_is_that_of_its_frames(rate_hz, rng):
  model = build_speech_vqvae(tiny("speech").autoencoder, num_speakers=2, sample_rate_hz=rate_hz)
  audio = 0.3 * modulated_noise(25 * rate_hz + 7, rng)
  expected = gain_to_level(frame_powers(audio, rate_hz))
  np.testing.assert_allclose(SpeechCodec(model).gain_of(audio), expected, rtol=1e-12)


def test_models_keep_their_rate_in_their_config():
  model = build_speech_vqvae(tiny("speech").autoencoder, num_speakers=2, sample_rate_hz=8000)
  assert SpeechVQVAE.from_config(model.get_config()).sample_rate_hz == 8000
  assert model.with_decoder(model.decoder).spectral.sample_rate_hz == 8000
  assert load_released()[0].sample_rate_hz == 16_000  # saved before models knew their rate


def test_corpus_and_workdir_of_another_rate_are_refused(tmp_path):
  task = make_task(tiny("speech"), tmp_path)
  prepare_corpus(tmp_path / "data", fake_recordings(), 8000)
  sentence = "contains audio of 8000 Hz, but config.data.sample_rate_hz is 16000: change it to 8000, or delete .*/data"
  with pytest.raises(UserError, match=sentence):
    _ = task.corpus
  config = tiny("speech")
  config.data.sample_rate_hz = 8000
  with pytest.raises(UserError, match=r"made with another config \(data.sample_rate_hz was 16000 and is 8000\)"):
    make_task(config, tmp_path)
