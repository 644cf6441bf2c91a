"""Writes the files of an export, and export.json, which describes them."""

import pathlib

import keras
import tqdm

from tfvq.endpoints.endpoint import Endpoint
from tfvq.errors import UserError
from tfvq.files import sha256, write_json
from tfvq.tasks.task import Task

from . import onnx, saved_model, tflite
from .device.codec import PARTS
from .parity import measure_parity

_NUM_PARITY_EXAMPLES = 100


def export(task: Task, out: pathlib.Path, formats, quantizations, model_path="") -> list[tuple[str, int, str]]:
  """Exports a trained system.

  Args:
    task: The system in its workdir.
    out: A new folder.
    formats: Some of "tflite", "saved_model" and "onnx".
    quantizations: Some of `tflite.MODES`.
    model_path: A `.keras` file of another autoencoder of the same data and codes; the run's own if empty.

  Returns:
    For each file its name, its size in bytes, and a summary of its parity.

  Raises:
    UserError: This system has nothing to export, or the formats need a stage that has not been run yet.
  """
  keras.config.set_dtype_policy("float32")  # whatever the training computed in
  if model_path:
    task = task.with_autoencoder(model_path)
  endpoints = task.device_endpoints()
  if not endpoints:
    raise UserError(f"{task.workdir.path} has no model that can be exported.")
  signatures = task.signatures() if "saved_model" in formats else {}
  jobs = []
  if "tflite" in formats:
    jobs += [
      ("tflite", mode, endpoint)
      for endpoint in endpoints
      for mode in quantizations
      if tflite.is_possible(endpoint, mode)
    ]
  if "onnx" in formats:
    stateless = [endpoint for endpoint in endpoints if not endpoint.state]
    jobs += [("onnx", "none", endpoint) for endpoint in (*stateless, *task.server_endpoints())]
  examples, files = {}, []
  out.mkdir(parents=True)
  for kind, mode, endpoint in tqdm.tqdm(jobs, desc="export", unit="file", dynamic_ncols=True):
    if endpoint.name not in examples:
      examples[endpoint.name] = endpoint.some_examples("held_out", _NUM_PARITY_EXAMPLES)
    files.append(_export_file(kind, mode, endpoint, examples[endpoint.name], out))
  codec_facts = task.codec_facts()
  if "tflite" in formats and codec_facts:
    for mode in quantizations:
      folder = out / "tflite" / mode
      checksums = {f"{name}.tflite": sha256(folder / f"{name}.tflite") for name in PARTS}
      write_json(folder / "codec.json", {**codec_facts, "files": checksums})
  if signatures:
    files.append(_export_saved_model(signatures, out))
  write_json(out / "export.json", {"task": task.config.task, **task.export_facts(), "files": files})
  return [(file["file"], file["bytes"], _summary(file)) for file in files]


def _export_file(kind, mode, endpoint, examples, out):
  """Writes a TFLite or ONNX file; returns its entry of export.json."""
  if kind == "tflite":
    name = f"tflite/{mode}/{endpoint.name}.tflite"
    content = tflite.write(endpoint, mode)
    runners = {"parity": tflite.Runner(content), "parity_builtin_kernels": tflite.Runner(content, xnnpack=False)}
  else:
    name = f"onnx/{endpoint.name}.onnx"
    content = onnx.convert(endpoint)
    runners = {"parity": onnx.Runner(content)}
  path = out / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
  return {
    "file": name,
    "quantization": mode,
    **_signature(endpoint),
    "bytes": path.stat().st_size,
    "sha256": sha256(path),
    **{key: measure_parity(endpoint, runner, examples) for key, runner in runners.items()},
  }


def _export_saved_model(signatures, out):
  """Writes the SavedModel; returns its entry of export.json."""
  folder = out / "saved_model"
  described, parity = saved_model.write_saved_model(signatures, folder)
  paths = sorted(path for path in folder.rglob("*") if path.is_file())
  return {
    "file": "saved_model",
    "quantization": "none",
    "signatures": described,
    "bytes": sum(path.stat().st_size for path in paths),
    "sha256": {str(path.relative_to(folder)): sha256(path) for path in paths},
    "parity": parity,
    "warmup_requests": (folder / saved_model.WARMUP_REQUESTS).exists(),
  }


def _signature(endpoint: Endpoint):
  return {
    "inputs": {name: [spec.shape.as_list(), spec.dtype.name] for name, spec in endpoint.inputs.items()},
    "input_ranges": {name: list(limits) for name, limits in endpoint.ranges.items()},
    "outputs": {
      name: [output.shape.as_list(), output.dtype.name] for name, output in endpoint.concrete.structured_outputs.items()
    },
  }


def _summary(file):
  """A sentence about the parity of a file and anything that it lacks."""
  words, errors = [], []
  for name, figures in file["parity"].items():
    if "share_equal" in figures:
      words.append(f"{100 * figures['share_equal']:.1f} % of {name} equal")
    else:
      errors.append(figures["relative_rms_error"])
  words += [f"relative error {max(errors):.0e}"] if errors else []
  if not file.get("warmup_requests", True):
    words.append("no warm-up requests, as the package tensorflow-serving-api is not installed")
  return f"; {', '.join(words)}" if words else ""
