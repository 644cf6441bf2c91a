import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from export import tflite
from export.exporter import export
from export.parity import measure_parity
from export.saved_model import WARMUP_REQUESTS
from tfvq.endpoints.endpoint import Endpoint, integers
from tfvq.errors import UserError
from tfvq.files import sha256
from tfvq.ops import cell_margin
from tfvq.tasks.stages import make_task, open_task
from tfvq.training.loading import load_model
from tfvq.training.workdir import Workdir

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize("xnnpack", [True, False])
def test_embedding_tables_are_quantized_like_weights(xnnpack, rng):
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


def sure_codes(z_e, given, codebook):
  """Marks vectors whose error is smaller than their margin."""
  return np.linalg.norm(z_e - given, axis=-1) < cell_margin(z_e, codebook)


def test_sure_codes_are_those_whose_error_stays_within_the_cell(rng):
  codebook = np.array([[0.0, 0.0], [1.0, 0.0]])
  z_e = np.array([[0.3, 0.0], [0.3, 0.0], [0.3, 5.0]])
  given = np.array([[0.45, 0.0], [0.3, 0.25], [0.3, 4.85]])
  np.testing.assert_array_equal(sure_codes(z_e, given, codebook), [True, False, True])
  codebook, z_e = rng.normal(size=[20, 4]), rng.normal(size=[2000, 4])
  given = z_e + 0.05 * rng.normal(size=z_e.shape)
  nearest = lambda vectors: np.argmin(np.linalg.norm(vectors[:, np.newaxis] - codebook, axis=-1), axis=-1)
  sure, equal = sure_codes(z_e, given, codebook), nearest(z_e) == nearest(given)
  assert equal[sure].all() and not equal.all() and 0.5 < sure.mean() < 1


@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
@pytest.mark.parametrize("centred", [True, False])
def test_rounding_does_not_change_sure_codes(offset, centred, rng):
  """Compares float32 scores, of centred vectors or not and at any distance from zero, with exact ones."""
  codebook = (offset + rng.normal(size=[100, 16])).astype(np.float32)
  codebook[50:60] = codebook[10:20]  # of equal vectors, the first is the code
  z_e = (offset + rng.normal(size=[3000, 16])).astype(np.float32)
  exact = np.argmin(np.square(z_e[:, np.newaxis].astype(np.float64) - codebook).sum(axis=-1), axis=-1)
  shift = codebook.mean(axis=0) if centred else 0
  scores = (z_e - shift) @ (codebook - shift).T - 0.5 * np.square(codebook - shift).sum(axis=-1)
  assert scores.dtype == np.float32
  sure = sure_codes(z_e, z_e, codebook)
  np.testing.assert_array_equal(np.argmax(scores, axis=-1)[sure], exact[sure])
  assert sure.mean() >= {0.0: 0.99, 30.0: 0.9, 1000.0: 0.0}[offset]


def test_export_json_lists_every_file(exported_frames, frames_run):
  facts = json.loads((exported_frames / "export.json").read_text())
  assert facts["task"] == "tfvq.tasks.images:ImageTask"
  assert facts["num_values"] == 16 and facts["code_shape"] == [4, 4]
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
  ranges = {
    name: files[f"onnx/{name}.onnx"]["input_ranges"] for name in ("encoder", "decoder", "prior_row", "prior_step")
  }
  assert ranges == {
    "encoder": {},
    "decoder": {"codes": [0, 15]},
    "prior_row": {"row": [0, 3], "x_above": [0, 15]},
    "prior_step": {"column": [0, 3], "x_left": [0, 15]},
  }
  assert facts["bits_per_image"] == 16 * 4
  served = files["saved_model"]
  assert served["signatures"]["decode"]["inputs"] == {"codes": [[None, 4, 4], "int32"]}
  assert served["signatures"]["decode"]["input_ranges"] == {"codes": [0, 15]}
  assert served["warmup_requests"] == (WARMUP_REQUESTS in served["sha256"])
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
          assert_agrees(figures, (file["file"], name))


def assert_agrees(figures, which):
  """Codes may differ only where rounding decides between two."""
  assert figures.get("share_equal_of_sure", figures.get("share_equal", 1)) == 1, which
  assert figures.get("share_sure", 1) > 0.99 and figures.get("relative_rms_error", 0) < 1e-5, which


def test_low_precision_run_is_exported_in_float32(frames_run, exported_frames, tmp_path):
  shutil.copytree(frames_run.workdir.path, tmp_path / "run")
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "precision": "mixed_bfloat16"}))
  run = open_task(tmp_path / "run")
  run.autoencoder.save(tmp_path / "model.keras")  # whose layers compute in bfloat16
  assert load_model(tmp_path / "model.keras").encoder.layers[-1].compute_dtype == "float32"
  for model_path in ("", str(tmp_path / "model.keras")):
    out = tmp_path / f"out {bool(model_path)}"
    export(open_task(tmp_path / "run"), out, ("tflite", "onnx"), ("none",), model_path)
    for file in json.loads((out / "export.json").read_text())["files"]:
      for figures in file["parity"].values():
        assert_agrees(figures, file["file"])
    images = frames_run.source.splits["held_out"]["image"][:1].astype(np.float32)
    runners = [tflite.Runner((folder / "tflite/none/encoder.tflite").read_bytes()) for folder in (out, exported_frames)]
    np.testing.assert_array_equal(*(runner(image=images)["codes"] for runner in runners))


def test_model_with_different_codebook_is_rejected(frames_run, tmp_path):
  other = frames_run.build_autoencoder()
  other.save(tmp_path / "other.keras")
  with pytest.raises(UserError, match="other.keras uses a different codebook from the model in"):
    export(frames_run, tmp_path / "out", ("tflite",), ("none",), str(tmp_path / "other.keras"))


@pytest.mark.parametrize("xnnpack", [True, False])
@pytest.mark.parametrize("mode", ["float16", "dynamic", "int8"])
def test_quantized_codes_differ_only_within_error(mode, xnnpack, frames_run, exported_frames):
  endpoint = frames_run.device_endpoints()[0]
  runner = tflite.Runner((exported_frames / "tflite" / mode / "encoder.tflite").read_bytes(), xnnpack)
  quantizer = frames_run.autoencoder.quantizer
  num_equal = num_codes = 0
  for example in endpoint.some_examples("held_out", 100):
    expected = endpoint.function(tf.constant(example["image"]))
    given = runner(**example)
    error = np.linalg.norm(expected["z_e"].numpy() - given["z_e"], axis=-1)
    sure = (error < quantizer.margin(expected["z_e"])).ravel()
    equal = (expected["codes"].numpy() == given["codes"]).ravel()
    assert equal[sure].all()
    num_equal, num_codes = num_equal + equal.sum(), num_codes + equal.size
  assert num_equal > 0.8 * num_codes


@pytest.mark.slow
def test_quantized_speech_is_close_to_keras(exported_speech):
  """For every file and both kinds of kernels, the largest error is that of rounded weights."""
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
        # Several steps depend on their own values: after a different value the audio differs, with equal loudness.
        most = 2 if file["file"].endswith("/steps.tflite") else most_error[mode]
        assert figures.get("relative_rms_error", 0) <= most, (file["file"], name, figures)
  assert seen == {f"tflite/{mode}/{name}.tflite" for mode in least_equal for name in names} - {
    "tflite/int8/steps.tflite"
  }


def test_export_is_deterministic(frames_run, exported_frames, tmp_path):
  export(frames_run, tmp_path / "again", ("tflite", "onnx"), ("none", "int8"))
  assert_same_files(tmp_path / "again", exported_frames)


def assert_same_files(folder, reference):
  """Asserts that two exports have equal TFLite and ONNX files."""
  paths = [path for path in folder.rglob("*") if path.suffix in (".tflite", ".onnx")]
  assert paths
  for path in paths:
    assert path.read_bytes() == (reference / path.relative_to(folder)).read_bytes(), path


@pytest.mark.slow
def test_command_is_deterministic_and_replaces_export(speech_run_folder, tmp_path):
  """Independent of the order of sets of strings in a process."""
  flags = (f"--workdir={speech_run_folder}", "--formats=tflite,onnx", "--quantize=dynamic")
  (tmp_path / "1").mkdir()
  (tmp_path / "1" / "export.json").write_text("of an earlier export")
  for seed in ("1", "2"):
    result = export_main(*flags, f"--out={tmp_path / seed}", hash_seed=seed)
    assert result.returncode == 0 and "% of codes equal" in result.stdout, result.stderr
  assert_same_files(tmp_path / "1", tmp_path / "2")
  assert json.loads((tmp_path / "1" / "export.json").read_text())["task"] == "tfvq.tasks.speech:SpeechTask"
  assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def export_main(*flags, hash_seed="0"):
  command = [sys.executable, "-m", "export.export_main", *flags]
  environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
  return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)


def test_no_warm_up_requests_without_tensorflow_serving_api(frames_run, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
  ((name, _, summary),) = export(frames_run, tmp_path / "out", ("saved_model",), ())
  assert name == "saved_model" and "no warm-up requests, as the package tensorflow-serving-api" in summary
  (file,) = json.loads((tmp_path / "out" / "export.json").read_text())["files"]
  assert file["warmup_requests"] is False and not (tmp_path / "out" / "saved_model" / WARMUP_REQUESTS).exists()
  assert tf.saved_model.load(str(tmp_path / "out" / "saved_model")).signatures["encode"]


def test_export_needs_finished_stages(frames_run, tmp_path):
  config = frames_run.config
  for trained, missing in (("", "autoencoder"), ("autoencoder", "prior")):
    folder = tmp_path / f"with {trained}"
    workdir = Workdir(folder, config.to_dict())
    if trained:
      shutil.copytree(frames_run.workdir.folder(trained), folder / trained)
    with pytest.raises(UserError, match=f"has no finished stage `{missing}`"):
      export(make_task(config, workdir.path), tmp_path / "out", ("saved_model",), ())
  with pytest.raises(UserError, match="There is no model nothing.keras"):
    export(frames_run, tmp_path / "out", ("tflite",), ("none",), "nothing.keras")
  assert not (tmp_path / "out").exists()


def test_parity_in_export_json_is_that_of_the_file(exported_frames, frames_run):
  endpoint = frames_run.device_endpoints()[1]
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
    (("--workdir=w", "--out=x", "--formats=tflite,coreml"), "--formats has coreml; choose from tflite"),
    (("--workdir=w", "--out=x", "--quantize=int4"), "--quantize has int4; choose from none"),
    (("--workdir=w", "--out=README.md"), "README.md is not an export, and only an export is replaced"),
    (("--workdir=w", "--out=."), ". is not an export, and only an export is replaced"),
  ],
)
def test_wrong_flags_print_one_line(flags, sentence):
  result = export_main(*flags)
  assert result.returncode == 2 and sentence in result.stderr and "Traceback" not in result.stderr


def test_out_with_longest_name_is_replaced(frames_run, tmp_path):
  out = tmp_path / ("o" * 255)
  out.mkdir()
  (out / "export.json").write_text("{}")
  flags = (f"--workdir={frames_run.workdir.path}", "--formats=tflite", "--quantize=none")
  result = export_main(*flags, f"--out={out}")
  assert result.returncode == 0 and json.loads((out / "export.json").read_text())["files"], result.stderr
  assert os.listdir(tmp_path) == [out.name]
  result = export_main(*flags, f"--out={out}o")
  assert (
    result.returncode == 2 and result.stderr == f"error: {out}o could not be read or written (File name too long).\n"
  )


def test_command_runs_as_file(tmp_path):
  command = [sys.executable, ROOT / "export" / "export_main.py", "--workdir=nowhere", "--out=x"]
  result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
  assert (
    result.returncode == 2 and result.stderr == "error: nowhere is not the folder of a run: it has no config.json.\n"
  )
