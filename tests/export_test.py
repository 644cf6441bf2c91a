import json
import os
import pathlib
import shutil
import subprocess
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from export import onnx, tflite
from export.endpoint import Endpoint, integers
from export.exporter import device_endpoints, export
from export.fast_wavenet import WaveNetStep, WaveNetSteps
from export.parity import measure_parity, sure_codes
from export.prior_endpoints import prior_endpoints
from export.saved_model import write_saved_model
from export.wavenet_endpoints import step_endpoint
from tfvq.data.arrays import ArraySource
from tfvq.errors import UserError
from tfvq.files import sha256
from tfvq.layers import CategoricalHead, LogisticMixtureHead
from tfvq.models import (
  PixelCNN,
  WaveNet,
  gumbel_noise,
  sample_grid,
  sample_sequence,
  sequence_noise_shape,
)
from tfvq.models.speech_codec import SpeechCodec
from tfvq.training.stages import Run, open_run
from tfvq.training.workdir import Workdir

ROOT = pathlib.Path(__file__).parent.parent


def wavenet(num_bands, rng, **changes):
  """A WaveNet with random weights."""
  head = CategoricalHead(16, num_bands, hidden_units=8)
  model = WaveNet(head, channels=8, dilation_rates=(1, 2, 4, 1, 2), condition_dim=3, **changes)
  for variable in model.variables:
    variable.assign(0.3 * rng.normal(size=variable.shape))
  return model


def generation(model, num_frames, steps_per_frame, rng):
  """A condition, noise, and what the Keras sampler draws with them: (shares [F, 2CL], noise, values [T, G])."""
  noise = gumbel_noise(3, sequence_noise_shape(model, num_frames * steps_per_frame, 1))
  condition = {"local": tf.constant(rng.normal(size=[1, num_frames, 3]), tf.float32)}
  values = sample_sequence(model, noise, condition, 0.7)[0]
  return tf.concat(model.project_condition(condition), axis=-1)[:, 0], noise, values.numpy()


@pytest.mark.parametrize("num_bands", [1, 3])
@pytest.mark.parametrize("ordinal", [True, False])
def test_a_step_whose_caller_keeps_the_rings_draws_what_keras_draws(num_bands, ordinal, rng):
  model = wavenet(num_bands, rng, ordinal=ordinal)
  shares, noise, expected = generation(model, num_frames=6, steps_per_frame=4, rng=rng)
  step, x = WaveNetStep(model), tf.zeros([1, 8])
  rings = [[tf.zeros([8])] * rate for rate in model.dilation_rates]
  for time in range(24):
    past = tf.stack([ring[time % len(ring)] for ring in rings])
    outputs = step(x, past, shares[tf.newaxis, time // 4], noise[time], tf.fill([num_bands], 0.7))
    np.testing.assert_array_equal(outputs["values"][0], expected[time])
    for ring, new in zip(rings, outputs["inputs"], strict=True):
      ring[time % len(ring)] = new
    x = outputs["x_next"]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("num_bands", [1, 3])
def test_several_steps_at_once_draw_what_keras_draws(num_steps, num_bands, rng):
  model = wavenet(num_bands, rng)
  shares, noise, expected = generation(model, num_frames=3, steps_per_frame=24, rng=rng)
  steps = WaveNetSteps(model, num_steps)
  run = tf.function(lambda share, noise: steps(share, noise, tf.fill([num_bands], 0.7)))
  for _ in range(2):
    for variable in steps.state:
      variable.assign(tf.zeros_like(variable))
    for time in range(0, 72, num_steps):
      values = run(shares[tf.newaxis, time // 24], noise[time : time + num_steps, 0])
      np.testing.assert_array_equal(values, expected[time : time + num_steps])


@pytest.mark.slow
def test_steps_and_their_audio_are_exported_with_their_state(exported_speech, speech_run_folder, rng):
  """The file says, call by call, what Keras says at once; the audio comes eight steps later."""
  model = open_run(speech_run_folder).autoencoder
  runner = tflite.Runner((exported_speech / "tflite" / "none" / "steps.tflite").read_bytes())
  codes, speaker = tf.constant(rng.integers(0, 16, [1, 12, 2])), tf.constant([1])
  shares = model.decoder.project_condition({"local": model.condition(codes, speaker)})
  noise = gumbel_noise(3, sequence_noise_shape(model.decoder, 96, 1))
  values = sample_sequence(model.decoder, noise, {"local": model.condition(codes, speaker)}, 0.8)
  expected = model.audio_values.decode(values)[0]
  shares = tf.concat(shares, axis=-1)[:, 0].numpy()
  for _ in range(2):
    runner.reset()
    parts = [
      runner(
        share=shares[np.newaxis, time // 8],
        noise=noise[time : time + 4, 0].numpy(),
        temperature=np.full([8], 0.8, np.float32),
      )["audio"]
      for time in range(0, 96, 4)
    ]
    np.testing.assert_allclose(np.concatenate(parts)[64:], expected[:-64], atol=1e-4)


def test_a_step_is_exported_with_a_mixture_of_logistics_too(rng):
  model = WaveNet(LogisticMixtureHead(65_536, 1, hidden_units=8), channels=8, dilation_rates=(1, 2), condition_dim=3)
  shares, noise, expected = generation(model, num_frames=2, steps_per_frame=4, rng=rng)
  inputs = {
    "x": np.zeros([1, 8], np.float32),
    "past": np.zeros([2, 8], np.float32),
    "share": shares[:1].numpy(),
    "noise": noise[0].numpy(),
    "temperature": np.full([1], 0.7, np.float32),
  }
  endpoint = step_endpoint(model, lambda split: [inputs])
  for runner in (tflite.Runner(tflite.write(endpoint, "none")), onnx.Runner(onnx.convert(endpoint))):
    np.testing.assert_array_equal(runner(**inputs)["values"][0], expected[0])


@pytest.mark.parametrize("xnnpack", [True, False])
def test_tables_are_int8_where_weights_are(xnnpack, rng):
  layer = keras.layers.Embedding(200, 64)
  layer.build()
  layer.embeddings.assign(rng.normal(size=[200, 64]) * 10.0 ** rng.uniform(-3, 1, [200, 1]))
  table = layer.embeddings.numpy()
  rows = rng.integers(0, 200, 5).astype(np.int32)
  endpoint = Endpoint(
    "rows", lambda rows: {"vectors": 1 + tf.gather(table, rows)}, {"rows": integers(5)}, layer, lambda split: ()
  )
  content = tflite.write(endpoint, "dynamic")
  assert len(content) < 0.5 * len(tflite.write(endpoint, "none"))
  error = np.abs(tflite.Runner(content, xnnpack)(rows=rows)["vectors"] - 1 - table[rows])
  assert np.all(error <= np.abs(table[rows]).max(axis=1, keepdims=True) / 127 + 1e-6)


def test_codes_are_sure_where_the_error_does_not_reach_the_border(rng):
  codebook = np.array([[0.0, 0.0], [1.0, 0.0]])
  z_e = np.array([[0.3, 0.0], [0.3, 0.0], [0.3, 5.0]])
  given = np.array([[0.45, 0.0], [0.3, 0.25], [0.3, 4.85]])
  np.testing.assert_array_equal(sure_codes(z_e, given, codebook), [True, False, True])
  codebook, z_e = rng.normal(size=[20, 4]), rng.normal(size=[2000, 4])
  given = z_e + 0.05 * rng.normal(size=z_e.shape)
  nearest = lambda vectors: np.argmin(np.linalg.norm(vectors[:, np.newaxis] - codebook, axis=-1), axis=-1)
  sure, equal = sure_codes(z_e, given, codebook), nearest(z_e) == nearest(given)
  assert equal[sure].all() and not equal.all() and 0.5 < sure.mean() < 1


@pytest.fixture(scope="module")
def exported_frames(frames_run, tmp_path_factory):
  folder = tmp_path_factory.mktemp("export") / "frames"
  export(frames_run, folder, ("tflite", "saved_model", "onnx"), tflite.MODES)
  return folder


@pytest.fixture(scope="module")
def exported_speech(speech_run_folder, tmp_path_factory):
  folder = tmp_path_factory.mktemp("export") / "speech"
  export(open_run(speech_run_folder), folder, ("tflite", "saved_model", "onnx"), tflite.MODES)
  return folder


def test_the_list_tells_of_every_file(exported_frames, frames_run):
  facts = json.loads((exported_frames / "export.json").read_text())
  assert facts["task"] == "images" and facts["num_embeddings"] == 16 and facts["code_shape"] == [4, 4]
  files = {file["file"]: file for file in facts["files"]}
  assert set(files) == {
    "saved_model",
    *(f"tflite/{mode}/{name}.tflite" for mode in tflite.MODES for name in ("encoder", "decoder")),
    *(f"onnx/{name}.onnx" for name in ("encoder", "decoder", "prior_row", "prior_step")),
  }
  encoder = files["tflite/int8/encoder.tflite"]
  assert encoder["inputs"] == {"image": [[1, 16, 16, 3], "float32"]}
  assert encoder["outputs"] == {"codes": [[1, 4, 4], "int32"], "z_e": [[1, 4, 4, 4], "float32"]}
  assert encoder["parity"]["codes"]["share_equal_of_sure"] == 1
  assert facts["bits_per_image"] == 16 * 4
  served = files["saved_model"]
  assert served["signatures"]["decode"]["inputs"] == {"codes": [[None, 4, 4], "int32"]}
  assert set(served["parity"]) == {"encode/codes", "decode/image", "sample/codes", "sample/image"}
  assert served["sha256"]["saved_model.pb"] == sha256(exported_frames / "saved_model" / "saved_model.pb")


@pytest.mark.slow
def test_float_files_agree_with_keras(exported_frames, exported_speech):
  for folder in (exported_frames, exported_speech):
    for file in json.loads((folder / "export.json").read_text())["files"]:
      if file["quantization"] != "none":
        continue
      for kernels in ("parity", "parity_builtin_kernels"):
        for name, figures in file.get(kernels, {}).items():
          assert figures.get("share_equal", 1) == 1, (file["file"], name)
          assert figures.get("relative_rms_error", 0) < 1e-5, (file["file"], name)


@pytest.mark.parametrize("xnnpack", [True, False])
@pytest.mark.parametrize("mode", ["float16", "dynamic", "int8"])
def test_quantised_codes_differ_only_where_the_error_allows_it(mode, xnnpack, frames_run, exported_frames):
  endpoint = device_endpoints(frames_run)[0]
  runner = tflite.Runner((exported_frames / "tflite" / mode / "encoder.tflite").read_bytes(), xnnpack)
  codebook = np.array(frames_run.autoencoder.quantizer.codebook)
  num_equal = num_codes = 0
  for example in endpoint.some_examples("held_out", 100):
    expected = endpoint.function(tf.constant(example["image"]))
    given = runner(**example)
    sure = sure_codes(expected["z_e"].numpy().reshape(-1, 4), given["z_e"].reshape(-1, 4), codebook)
    equal = (expected["codes"].numpy() == given["codes"]).ravel()
    assert equal[sure].all()
    num_equal, num_codes = num_equal + equal.sum(), num_codes + equal.size
  assert num_equal > 0.8 * num_codes


@pytest.mark.slow
def test_quantised_speech_says_nearly_the_same(exported_speech):
  """Of every file, on either kernels: the error of the worst output is that of the rounding of weights."""
  least_equal, most_error = (
    {"float16": 0.97, "dynamic": 0.9, "int8": 0.8},
    {"float16": 0.01, "dynamic": 0.1, "int8": 0.3},
  )
  files = json.loads((exported_speech / "export.json").read_text())["files"]
  names = ("encoder", "condition", "step", "synthesis", "steps")
  seen = set()
  for file in files:
    mode = file["quantization"]
    if mode == "none":
      continue
    seen.add(file["file"])
    for kernels in ("parity", "parity_builtin_kernels"):
      for name, figures in file[kernels].items():
        assert figures.get("share_equal", 1) >= least_equal[mode], (file["file"], name, figures)
        assert figures.get("share_equal_of_sure", 1) == 1, (file["file"], name)
        # Several steps hear what they said themselves: after another value it is another sound, as loud as the first.
        most = 2 if file["file"].endswith("/steps.tflite") else most_error[mode]
        assert figures.get("relative_rms_error", 0) <= most, (file["file"], name, figures)
  assert seen == {f"tflite/{mode}/{name}.tflite" for mode in least_equal for name in names} - {
    "tflite/int8/steps.tflite"
  }


def test_the_same_run_gives_the_same_bytes(frames_run, exported_frames, tmp_path):
  export(frames_run, tmp_path / "again", ("tflite", "onnx"), ("none", "int8"))
  assert_same_files(tmp_path / "again", exported_frames)


def assert_same_files(folder, reference):
  """The TFLite and ONNX files of an export are those of another."""
  paths = [path for path in folder.rglob("*") if path.suffix in (".tflite", ".onnx")]
  assert paths
  for path in paths:
    assert path.read_bytes() == (reference / path.relative_to(folder)).read_bytes(), path


@pytest.mark.slow
def test_the_command_gives_the_same_bytes_again_and_replaces_an_export(speech_run_folder, tmp_path):
  """Whatever order sets and dicts of strings have in a process."""
  flags = (f"--workdir={speech_run_folder}", "--formats=tflite,onnx", "--quantize=dynamic")
  (tmp_path / "1").mkdir()
  (tmp_path / "1" / "export.json").write_text("of an earlier export")
  for seed in ("1", "2"):
    result = export_main(*flags, f"--out={tmp_path / seed}", hash_seed=seed)
    assert result.returncode == 0 and "% of codes equal" in result.stdout, result.stderr
  assert_same_files(tmp_path / "1", tmp_path / "2")
  assert json.loads((tmp_path / "1" / "export.json").read_text())["task"] == "speech"
  assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


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
  np.testing.assert_array_equal(drawn["codes"], sample_grid(frames_run.prior, noise, None, 0.9))


@pytest.mark.slow
def test_a_server_of_speech_needs_tensorflow_only(exported_speech, speech_run_folder, tmp_path, rng):
  model = open_run(speech_run_folder).autoencoder
  audio = (0.1 * rng.normal(size=[2, 6401])).astype(np.float32)
  codes = serve(exported_speech, "encode", tmp_path, audio=audio)["codes"]
  padded = np.pad(audio, [(0, 0), (20 * 64, 63 + 20 * 64)])
  np.testing.assert_array_equal(codes, model.encode(padded)[:, 20:-20])
  drawn = {"speaker": np.array([1, 0], np.int32), "seed": np.int32(5), "temperature": np.full([8], 0.8, np.float32)}
  spoken = serve(exported_speech, "decode", tmp_path, codes=codes[:, :60], **drawn)["audio"]
  expected = SpeechCodec(model, frames_per_part=25, jit_compile=False).decode(codes[:, :60], [1, 0], 5, 0.8)
  # Rounding decides a draw now and then; up to the first such draw both say the same.
  assert spoken.shape == expected.shape == (2, 3840)
  np.testing.assert_allclose(spoken[:, :640], expected[:, :640], atol=1e-4)
  sampled = serve(exported_speech, "sample", tmp_path, num_frames=np.int32(30), **drawn)
  assert sampled["codes"].shape == (2, 30, 2) and sampled["audio"].shape == (2, 1920)


@pytest.mark.slow
def test_warm_up_requests_can_be_read(exported_speech):
  from tensorflow_serving.apis import prediction_log_pb2

  path = exported_speech / "saved_model" / "assets.extra" / "tf_serving_warmup_requests"
  requests = [prediction_log_pb2.PredictionLog.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(path))]
  names = [request.predict_log.request.model_spec.signature_name for request in requests]
  assert names == ["encode", "decode", "sample"]
  assert set(requests[1].predict_log.request.inputs) == {"codes", "speaker", "seed", "temperature"}


def export_main(*flags, hash_seed="0"):
  command = [sys.executable, "-m", "export.export_main", *flags]
  environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
  return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


def test_what_is_not_trained_is_not_exported(frames_run, tmp_path):
  config = frames_run.config
  for trained, missing in (("", "autoencoder"), ("autoencoder", "prior")):
    folder = tmp_path / f"with {trained}"
    workdir = Workdir(folder, config.to_dict())
    if trained:
      shutil.copytree(frames_run.workdir.folder(trained), folder / trained)
    with pytest.raises(UserError, match=f"has no finished stage `{missing}`"):
      export(Run(config, workdir, ""), tmp_path / "out", ("saved_model",), ())
  with pytest.raises(UserError, match="There is no model nothing.keras"):
    export(frames_run, tmp_path / "out", ("tflite",), ("none",), "nothing.keras")
  assert not (tmp_path / "out").exists()


def test_a_prior_of_classes_is_exported_with_its_beginning(frames_run, tmp_path, rng):
  prior = PixelCNN(16, (4, 4), filters=8, num_layers=2, kernel_size=3, hidden_units=8, num_classes=3)
  arrays = {"codes": rng.integers(0, 16, [5, 4, 4]).astype(np.int32), "label": np.arange(5, dtype=np.int32) % 3}
  run = types.SimpleNamespace(
    prior=prior, codes=ArraySource({"held_out": arrays}, 3), autoencoder=frames_run.autoencoder, task=frames_run.task
  )
  endpoints = prior_endpoints(run)
  assert [endpoint.name for endpoint in endpoints] == ["prior_row", "prior_step", "prior_start"]
  for endpoint in endpoints:
    parity = measure_parity(endpoint, onnx.Runner(onnx.convert(endpoint)), endpoint.some_examples("held_out", 5))
    for name, figures in parity.items():
      assert figures.get("share_equal", 1) == 1 and figures.get("relative_rms_error", 0) < 1e-5, (endpoint.name, name)
  signatures, parity = write_saved_model(run, tmp_path / "saved_model")
  assert signatures["sample"]["inputs"]["label"] == [[None], "int32"]
  assert all(figures.get("share_equal", 1) == 1 for figures in parity.values())
  labels, drawn = np.array([2, 0, 1], np.int32), {"seed": np.int32(7), "temperature": np.float32(0.9)}
  codes = serve(tmp_path, "sample", tmp_path, label=labels, **drawn)["codes"]
  np.testing.assert_array_equal(codes, sample_grid(prior, gumbel_noise(7, [4, 4, 3, 1, 16]), labels, 0.9))


def test_a_runs_parity_is_that_of_the_file(exported_frames, frames_run):
  endpoint = device_endpoints(frames_run)[1]
  content = (exported_frames / "tflite" / "dynamic" / "decoder.tflite").read_bytes()
  found = measure_parity(endpoint, tflite.Runner(content), endpoint.some_examples("held_out", 100))
  files = json.loads((exported_frames / "export.json").read_text())["files"]
  (kept,) = [file for file in files if file["file"] == "tflite/dynamic/decoder.tflite"]
  assert found == kept["parity"] and found["image"]["max_error"] > 0


@pytest.mark.parametrize(
  ("flags", "sentence"),
  [
    (("--workdir=nowhere", "--out=x"), "nowhere is not the folder of a run"),
    (("--out=x",), "Both --workdir=DIR and --out=DIR are needed"),
    (("--workdir=w", "--out=x", "--formats=tflite,coreml"), "--formats has coreml; choose of tflite"),
    (("--workdir=w", "--out=x", "--quantize=int4"), "--quantize has int4; choose of none"),
    (("--workdir=w", "--out=README.md"), "README.md is not an export, which alone would be replaced"),
    (("--workdir=w", "--out=."), ". is not an export, which alone would be replaced"),
  ],
)
def test_wrong_flags_end_with_one_sentence(flags, sentence):
  result = export_main(*flags)
  assert result.returncode == 2 and sentence in result.stderr and "Traceback" not in result.stderr
