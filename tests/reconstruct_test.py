import io
import json
import operator
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import soundfile
import tensorflow as tf
from ml_collections import ConfigDict

from tests.sound import SAMPLE_RATE_HZ, speech_like
from tests.tiny import tiny
from tfvq import release
from tfvq.data.audio_files import AudioReader
from tfvq.errors import UserError
from tfvq.layers import VectorQuantizer
from tfvq.tasks.stages import make_task

ROOT = pathlib.Path(__file__).parent.parent


def reconstruct(*args):
  command = [sys.executable, "-m", "tfvq.reconstruct", *map(str, args)]
  result = subprocess.run(
    command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False
  )
  return result.returncode, result.stdout


@pytest.mark.slow
def test_released_model_reconstructs_files(speech_run_folder, tmp_path, rng):
  config = ConfigDict(json.loads((speech_run_folder / "config.json").read_text()))
  released = tmp_path / "speech.keras"
  release.write_released(make_task(config, speech_run_folder), released)
  model, facts = release.load_released(released)
  assert facts["speakers"] == ["en-us+m1", "en-us+f2"]
  whole = make_task(config, speech_run_folder).autoencoder
  parts = {"encoder": 11, "quantizer": 11, "decoder.conditioner": 11, "decoder.wavenet": 8}
  for part, num_bits in parts.items():
    part_of = operator.attrgetter(part)
    for got, given in zip(part_of(model).get_weights(), part_of(whole).get_weights(), strict=True):
      if given.ndim > 1:
        np.testing.assert_array_equal(got, release.round_weights(given, num_bits))
  audio = speech_like(6400, rng)[np.newaxis]
  np.testing.assert_allclose(
    model.nats_per_sample(audio, tf.constant([0])), whole.nats_per_sample(audio, tf.constant([0])), rtol=0.01
  )
  files = {"a.flac": (22_050, 1, "PCM_24"), "b.wav": (48_000, 2, "FLOAT"), "c.wav": (8000, 1, "PCM_U8")}
  for name, (rate_hz, num_channels, subtype) in files.items():
    soundfile.write(tmp_path / name, np.stack([speech_like(rate_hz, rng)] * num_channels, axis=1), rate_hz, subtype)
    returncode, output = reconstruct(tmp_path / name, tmp_path / "out.wav", f"--model={released}", "--speaker=en-us+f2")
    assert returncode == 0, output
    assert "2.00 kbit/s" in output and "times real time" in output
    assert AudioReader(tmp_path / "out.wav").num_samples == SAMPLE_RATE_HZ
  for seconds in (0.01, 0.0625):
    soundfile.write(tmp_path / "short.wav", np.zeros(int(seconds * SAMPLE_RATE_HZ)), SAMPLE_RATE_HZ)
    returncode, output = reconstruct(tmp_path / "short.wav", tmp_path / "out.wav", f"--model={released}")
    assert returncode == 0, output
    assert AudioReader(tmp_path / "out.wav").num_samples == int(seconds * SAMPLE_RATE_HZ)


@pytest.mark.slow
def test_release_is_deterministic(speech_run_folder, tmp_path):
  for name in ("one.keras", "two.keras"):
    command = [sys.executable, "-m", "tfvq.release", f"--workdir={speech_run_folder}", f"--out={tmp_path / name}"]
    assert "MB" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
  assert (tmp_path / "one.keras").read_bytes() == (tmp_path / "two.keras").read_bytes()


def test_release_needs_trained_speech_model(frames_run, tmp_path):
  with pytest.raises(UserError, match="does not contain a speech system"):
    release.write_released(frames_run, tmp_path / "speech.keras")
  config = tiny("speech")
  with pytest.raises(UserError, match="could not be read"):
    release.write_released(make_task(config, tmp_path / "run", ""), tmp_path / "speech.keras")
  assert not list(tmp_path.glob("speech*"))


@pytest.mark.parametrize("num_bits", [8, 10])
def test_rounded_weights_stay_within_half_a_step(num_bits, rng):
  weights = (rng.normal(size=[3, 40, 30]) * 10.0 ** rng.uniform(-4, 1, 30)).astype(np.float32)
  weights[..., 0] = 0
  rounded, limit = release.round_weights(weights, num_bits), 2 ** (num_bits - 1) - 1
  largest = np.abs(weights).max(axis=(0, 1))
  assert rounded.dtype == np.float16 and np.all(np.abs(rounded - weights) <= largest / limit)
  for output in range(30):
    steps = rounded[..., output] / 2.0 ** np.ceil(np.log2(max(largest[output] / limit, 2.0**-24)))
    np.testing.assert_array_equal(steps, np.clip(np.round(steps), -limit, limit))
  np.testing.assert_array_equal(release.round_weights(rounded.astype(np.float32), num_bits), rounded)


def test_values_beyond_float16_are_kept(tmp_path):
  layer = VectorQuantizer(8, 4)
  model = keras.Sequential([keras.layers.Input([4]), layer])
  model(np.ones([2, 4], np.float32))
  values = [np.array(value) for value in layer.get_weights()]
  counts = next(index for index, value in enumerate(values) if value.shape == (8,) and value.dtype == np.float32)
  values[counts][:] = [0, 1e-7, 0.1, 1, 65_504, 65_520, 70_001, 3e38]
  layer.set_weights([1e6 * value if value.shape == (8, 4) else value for value in values])
  model.save_weights(tmp_path / "whole.weights.h5")
  (tmp_path / "small.weights.h5").write_bytes(release._rounded((tmp_path / "whole.weights.h5").read_bytes()))
  loaded = keras.models.clone_model(model)
  loaded.load_weights(tmp_path / "small.weights.h5")
  for got, given in zip(loaded.get_weights(), model.get_weights(), strict=True):
    if got.ndim < 2:
      np.testing.assert_array_equal(got, given)
    else:
      assert np.abs(got - given).max() <= np.abs(given).max() / 1023 and np.abs(given).max() > 65_504


@pytest.mark.parametrize(
  ("args", "sentence"),
  [
    (("text.wav", "out.wav"), "is not a WAV, FLAC, MP3 or Ogg Vorbis file"),
    (("nothing.wav", "out.wav"), "is not a file"),
    (("one.wav",), "Give an input and an output file"),
    (("a.wav", "out.wav", "--bogus"), "bogus"),
    (("good.wav", "out.wav", "--model=nothing.keras"), "There is no model nothing.keras"),
    (("good.wav", "."), ". is a folder: name a file in it"),
    (("good.wav", "out.mp3"), "out.mp3 must be a WAV file"),
    (("good.wav", "out.wav", "--temperature=nan"), "--temperature=nan is not a non-negative number"),
    (("good.wav", "out.wav", "--temperature=-1"), "--temperature=-1 is not a non-negative number"),
    (("numbers.wav", "out.wav"), "holds samples that are not finite numbers"),
    (("help", "out.mp3"), "out.mp3 must be a WAV file"),
    (("good.wav", "good.wav"), "good.wav is the input file: give another output file"),
    (("good.wav", "link.wav"), "link.wav is the input file: give another output file"),
    (("good.wav", "good.wav/out.wav"), "could not be written (Not a directory)"),
    (("good.wav", "n" * 252 + ".wav"), "could not be written (File name too long)"),
    (("good.wav", "/proc/out.wav"), "/proc/out.wav could not be written"),
    (("good.wav", "out.wav", "--seed=-1"), "flag --seed=-1: -1 is not an integer in the range [0, 2147483647]"),
    (("good.wav", "out.wav", "--seed=2147483648"), "is not an integer in the range [0, 2147483647]"),
    (("good.wav", "out.wav", "--seed=1" + 30 * "0"), "is not an integer in the range [0, 2147483647]"),
    (("good.wav", "out.wav", "--seed=1" + 5000 * "0"), "--seed"),
    (("good.wav", "out.wav", "--model=weights.keras"), "weights.keras is not a released speech model"),
  ],
)
def test_wrong_input_prints_one_line_and_leaves_no_file(args, sentence, tmp_path):
  (tmp_path / "text.wav").write_text("these are words")
  soundfile.write(tmp_path / "good.wav", np.zeros(800), SAMPLE_RATE_HZ)
  soundfile.write(tmp_path / "numbers.wav", np.full(800, np.nan, np.float32), SAMPLE_RATE_HZ, subtype="FLOAT")
  (tmp_path / "link.wav").symlink_to("good.wav")
  keras.Sequential([keras.layers.Input([1]), keras.layers.Dense(1)]).save(tmp_path / "weights.keras")
  (tmp_path / "weights.json").write_text("{}")
  args = [tmp_path / arg if arg.endswith(".wav") else arg.replace("weights", f"{tmp_path}/weights") for arg in args]
  returncode, output = reconstruct(*args)
  assert returncode == 2 and sentence in output, output
  assert output.startswith("error: ") and output.count("\n") == 1
  assert not (tmp_path / "out.wav").exists() and not list(tmp_path.rglob(".partial-*"))
  np.testing.assert_array_equal(soundfile.read(tmp_path / "good.wav")[0], np.zeros(800))


def test_reconstruct_reads_and_writes_pipes(tmp_path, rng):
  soundfile.write(tmp_path / "in.flac", speech_like(1000, rng), SAMPLE_RATE_HZ)
  command = [sys.executable, "-m", "tfvq.reconstruct", "-", "-"]
  content = (tmp_path / "in.flac").read_bytes()
  result = subprocess.run(command, cwd=ROOT, input=content, capture_output=True, timeout=900, check=False)
  assert result.returncode == 0, result.stderr
  spoken, rate_hz = soundfile.read(io.BytesIO(result.stdout), dtype="float32")
  assert rate_hz == SAMPLE_RATE_HZ and spoken.shape == (1000,) and np.abs(spoken).max() > 0.01
  assert b"times real time" in result.stderr
