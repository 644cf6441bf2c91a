import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from export import onnx
from export.parity import measure_parity
from export.saved_model import write_saved_model
from tests.tiny import tiny
from tfvq.data.arrays import ArraySource
from tfvq.data.speech_corpus import Clip
from tfvq.endpoints.image_signatures import image_signatures
from tfvq.endpoints.prior import pixelcnn_endpoints
from tfvq.endpoints.speech_signatures import speech_signatures
from tfvq.layers import CategoricalHead
from tfvq.models import PixelCNN, WaveNet, gumbel_noise, sample
from tfvq.models.speech_codec import SpeechCodec
from tfvq.tasks.speech import build_speech_vqvae
from tfvq.tasks.stages import open_task

_SERVE = """
import sys
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
inputs = {name: tf.constant(value) for name, value in np.load(sys.argv[2]).items()}
outputs = model.signatures[sys.argv[3]](**inputs)
np.savez(sys.argv[4], **{name: value.numpy() for name, value in outputs.items()})
assert not any(name.split(".")[0] in ("tfvq", "export") for name in sys.modules)
"""


def serve(folder, signature, tmp_path, **inputs):
  """Runs a signature in a process that has nothing but TensorFlow."""
  np.savez(tmp_path / "inputs.npz", **inputs)
  command = [
    sys.executable,
    "-c",
    _SERVE,
    folder / "saved_model",
    tmp_path / "inputs.npz",
    signature,
    tmp_path / "o.npz",
  ]
  subprocess.run([str(part) for part in command], check=True, cwd=tmp_path, timeout=900)
  return dict(np.load(tmp_path / "o.npz"))


def test_a_server_of_images_needs_tensorflow_only(exported_frames, frames_run, tmp_path, rng):
  images = rng.uniform(0, 255, [3, 16, 16, 3]).astype(np.float32)
  codes = serve(exported_frames, "encode", tmp_path, image=images)["codes"]
  np.testing.assert_array_equal(codes, frames_run.autoencoder.encode(images))
  decoded = serve(exported_frames, "decode", tmp_path, codes=codes)["image"]
  np.testing.assert_allclose(decoded, frames_run.autoencoder.decode(codes), atol=1e-3)
  drawn = serve(exported_frames, "sample", tmp_path, num=np.int32(2), seed=np.int32(7), temperature=np.float32(0.9))
  noise = gumbel_noise(7, [4, 4, 2, 1, 16])
  np.testing.assert_array_equal(drawn["codes"], sample(frames_run.prior, noise, None, 0.9))


@pytest.mark.slow
def test_a_server_of_speech_needs_tensorflow_only(exported_speech, speech_run_folder, tmp_path, rng):
  model = open_task(speech_run_folder).autoencoder
  audio = (0.1 * rng.normal(size=[2, 6401])).astype(np.float32)
  codes = serve(exported_speech, "encode", tmp_path, audio=audio)["codes"]
  padded = np.pad(audio, [(0, 0), (20 * 64, 63 + 20 * 64)])
  np.testing.assert_array_equal(codes, model.encode(padded)[:, 20:-20])
  drawn = {"speaker": np.array([1, 0], np.int32), "seed": np.int32(5), "temperature": np.full([8], 0.8, np.float32)}
  spoken = serve(exported_speech, "decode", tmp_path, codes=codes[:, :60], **drawn)["audio"]
  expected = SpeechCodec(model, frames_per_part=25, jit_compile=False).decode(codes[:, :60], [1, 0], 5, 0.8)
  # Rounding changes a sampled value now and then; before the first such value, both are equal.
  assert spoken.shape == expected.shape == (2, 3840)
  np.testing.assert_allclose(spoken[:, :640], expected[:, :640], atol=1e-4)
  drawn |= {"num_frames": np.int32(30), "prior_temperature": np.float32(0.9)}
  sampled = serve(exported_speech, "sample", tmp_path, **drawn)
  assert sampled["codes"].shape == (2, 30, 2) and sampled["audio"].shape == (2, 1920)


@pytest.fixture(scope="module")
def served_speech(tmp_path_factory):
  """A small speech model, untrained, and the signatures of its SavedModel loaded again."""
  keras.utils.set_random_seed(0)
  config, rng = tiny("speech"), np.random.default_rng(0)
  model = build_speech_vqvae(config.autoencoder, num_speakers=2)
  prior = WaveNet(CategoricalHead(16, 2, hidden_units=8), channels=8, dilation_rates=(1, 2), num_speakers=2)
  clip = Clip("a", 1, (0.1 * rng.normal(size=3000)).astype(np.float32), np.zeros([0, 4], np.int32))
  corpus = types.SimpleNamespace(clips=lambda split: iter([clip]), speakers=["a", "b"])
  folder = tmp_path_factory.mktemp("speech") / "saved_model"
  write_saved_model(speech_signatures(model, prior, corpus, config.samples.temperature), folder)
  return model, tf.saved_model.load(str(folder)).signatures


@pytest.mark.parametrize("batch_size", [0, 1, 2])
@pytest.mark.parametrize("num_samples", [0, 1, 64, 65, 2000])
def test_served_codes_of_any_number_of_samples(batch_size, num_samples, served_speech, rng):
  model, served = served_speech
  audio = (0.1 * rng.normal(size=[batch_size, num_samples])).astype(np.float32)
  codes = served["encode"](audio=tf.constant(audio))["codes"].numpy()
  assert codes.shape == (batch_size, -(-num_samples // 64), 2) and codes.dtype == np.int32
  codec = SpeechCodec(model)
  for found, samples in zip(codes, audio if num_samples else [], strict=False):
    np.testing.assert_array_equal(found, codec.encode(samples))


@pytest.mark.parametrize("batch_size", [0, 1, 2])
@pytest.mark.parametrize("num_frames", [0, 1, 26])
def test_served_speech_of_any_number_of_frames(batch_size, num_frames, served_speech, rng):
  model, served = served_speech
  codes = rng.integers(0, 16, [batch_size, num_frames, 2]).astype(np.int32)
  speaker = np.arange(batch_size, dtype=np.int32)
  drawn = {"speaker": speaker, "seed": np.int32(5), "temperature": np.full([8], 0.8, np.float32)}
  drawn = {name: tf.constant(value) for name, value in drawn.items()}
  audio = served["decode"](codes=tf.constant(codes), **drawn)["audio"].numpy()
  assert audio.shape == (batch_size, 64 * num_frames) and np.isfinite(audio).all()
  if audio.size:
    expected = SpeechCodec(model, frames_per_part=25, jit_compile=False).decode(codes, speaker, 5, 0.8)
    np.testing.assert_allclose(audio[:, :64], expected[:, :64], atol=1e-4)
  more = {"num_frames": tf.constant(num_frames), "prior_temperature": tf.constant(0.9)}
  sampled = served["sample"](**drawn, **more)
  assert sampled["codes"].shape == (batch_size, num_frames, 2) and sampled["audio"].shape == audio.shape


def test_served_images_of_an_empty_batch(exported_frames):
  served = tf.saved_model.load(str(exported_frames / "saved_model")).signatures
  codes = served["encode"](image=tf.zeros([0, 16, 16, 3]))["codes"]
  assert codes.shape == (0, 4, 4) and served["decode"](codes=codes)["image"].shape == (0, 16, 16, 3)
  drawn = served["sample"](num=tf.constant(0), seed=tf.constant(1), temperature=tf.constant(1.0))
  assert drawn["codes"].shape == (0, 4, 4) and drawn["image"].shape == (0, 16, 16, 3)


@pytest.mark.slow
def test_warm_up_requests_can_be_read(exported_speech):
  from tensorflow_serving.apis import prediction_log_pb2

  path = exported_speech / "saved_model" / "assets.extra" / "tf_serving_warmup_requests"
  requests = [prediction_log_pb2.PredictionLog.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(path))]
  names = [request.predict_log.request.model_spec.signature_name for request in requests]
  assert names == ["encode", "decode", "sample"]
  assert set(requests[1].predict_log.request.inputs) == {"codes", "speaker", "seed", "temperature"}


def class_conditional_prior(rng):
  """A prior conditioned on a class, and codes with classes."""
  prior = PixelCNN(16, (4, 4), filters=8, num_layers=2, kernel_size=3, hidden_units=8, num_classes=3)
  arrays = {"codes": rng.integers(0, 16, [5, 4, 4]).astype(np.int32), "label": np.arange(5, dtype=np.int32) % 3}
  return prior, ArraySource({"held_out": arrays}, 3)


def test_examples_of_a_prior_hold_the_states_of_a_generation_step_by_step(rng):
  prior, source = class_conditional_prior(rng)
  arrays = source.splits["held_out"]
  expected = {"prior_row": [], "prior_step": []}
  for number, (codes, label) in enumerate(zip(arrays["codes"][..., np.newaxis], arrays["label"], strict=True)):
    projected, state = prior.project_condition({"label": label[np.newaxis]}), prior.initial_state(1)
    for row in range(4):
      x_above = codes[np.newaxis, row - 1]
      expected["prior_row"].append({"row": row, "x_above": x_above, "label": [label], "state": state[2:]})
      state = begun = prior.row(x_above, state, projected)
      for column in range(4):
        if row == number % 4:
          x_left = codes[np.newaxis, row, column - 1]
          expected["prior_step"].append({"column": column, "x_left": x_left, "state": state[2:]})
        _, state = prior.step(codes[np.newaxis, row, column - 1], state)
      state = begun  # a row does not depend on the horizontal states of the row above
  for endpoint in pixelcnn_endpoints(prior, source):
    examples = list(endpoint.examples("held_out"))
    assert len(examples) == len(expected[endpoint.name])
    for example, wanted in zip(examples, expected[endpoint.name], strict=True):
      states = [example[name] for name in sorted(example) if name.startswith("state_")]
      for found, value in zip(states, tf.nest.flatten(wanted.pop("state")), strict=True):
        np.testing.assert_allclose(found, value, atol=1e-6)
      for name, value in wanted.items():
        np.testing.assert_array_equal(example[name], value)


def test_a_prior_of_classes_is_exported_with_the_class_at_each_row(frames_run, tmp_path, rng):
  prior, codes = class_conditional_prior(rng)
  endpoints = pixelcnn_endpoints(prior, codes)
  assert [endpoint.name for endpoint in endpoints] == ["prior_row", "prior_step"]
  assert endpoints[0].ranges["label"] == (0, 2) and "label" not in endpoints[1].inputs
  for endpoint in endpoints:
    parity = measure_parity(endpoint, onnx.Runner(onnx.convert(endpoint)), endpoint.some_examples("held_out", 5))
    for name, figures in parity.items():
      assert figures.get("share_equal", 1) == 1 and figures.get("relative_rms_error", 0) < 1e-5, (endpoint.name, name)
  signatures = image_signatures(frames_run.autoencoder, prior, frames_run.source)
  signatures, parity = write_saved_model(signatures, tmp_path / "saved_model")
  assert signatures["sample"]["inputs"]["label"] == [[None], "int32"]
  assert signatures["sample"]["input_ranges"] == {"label": [0, 2]}
  assert all(figures.get("share_equal", 1) == 1 for figures in parity.values())
  labels, drawn = np.array([2, 0, 1], np.int32), {"seed": np.int32(7), "temperature": np.float32(0.9)}
  codes = serve(tmp_path, "sample", tmp_path, label=labels, **drawn)["codes"]
  np.testing.assert_array_equal(codes, sample(prior, gumbel_noise(7, [4, 4, 3, 1, 16]), {"label": labels}, 0.9))
