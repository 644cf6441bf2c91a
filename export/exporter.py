"""Writes the files of an export, and export.json, which describes them."""

import math
import pathlib

import keras
import numpy as np
import tqdm

from tfvq import models
from tfvq.data.audio_files import SAMPLE_RATE_HZ
from tfvq.errors import UserError
from tfvq.files import sha256, write_json
from tfvq.ops.subbands import CONTEXT_STEPS
from tfvq.training.loading import load_model

from . import onnx, saved_model, tflite
from .device.codec import PARTS
from .endpoint import Endpoint
from .image_endpoints import image_endpoints
from .parity import measure_parity
from .prior_endpoints import prior_endpoints
from .speech_endpoints import (
  CONDITION_FRAMES,
  ENCODER_FRAMES,
  speech_endpoints,
  synthesis_steps,
)

_NUM_PARITY_EXAMPLES = 100
_CODEC_FACTS = ("sample_rate_hz", "hop_samples", "frame_shape", "num_embeddings", "speakers", "autoencoder_sha256")


def export(run, out: pathlib.Path, formats, quantizations, model_path="") -> list[tuple[str, int, str]]:
  """Exports a run.

  Args:
    run: `tfvq.training.stages.Run`.
    out: A new folder.
    formats: Of "tflite", "saved_model" and "onnx".
    quantizations: Of `tflite.MODES`.
    model_path: A `.keras` file of another autoencoder of the same data and codes; the run's own if empty.

  Returns:
    For each file its name, its size in bytes, and a summary of its parity.

  Raises:
    UserError: The system has no codes, or the formats need a stage that has not been run yet.
  """
  if not run.task.has_codes:
    raise UserError(f"{run.workdir.path} has no autoencoder with codes: there is nothing to export.")
  keras.config.set_dtype_policy("float32")  # whatever the training computed in
  run.workdir.require("autoencoder")
  if model_path:
    model = load_model(model_path)
    if not _has_same_codebook(model, run.autoencoder):
      raise UserError(
        f"{model_path} uses a different codebook from the model in {run.workdir.path}: give a model made from that one."
      )
    run.autoencoder = model
  if {"saved_model", "onnx"} & set(formats):
    run.workdir.require("prior")
  endpoints = device_endpoints(run)
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
    jobs += [("onnx", "none", endpoint) for endpoint in (*stateless, *prior_endpoints(run))]
  examples, files = {}, []
  out.mkdir(parents=True)
  for kind, mode, endpoint in tqdm.tqdm(jobs, desc="export", unit="file", dynamic_ncols=True):
    if endpoint.name not in examples:
      examples[endpoint.name] = endpoint.some_examples("held_out", _NUM_PARITY_EXAMPLES)
    files.append(_export_file(kind, mode, endpoint, examples[endpoint.name], out))
  facts = _facts(run, model_path or run.workdir.folder("autoencoder") / "checkpoint.keras")
  if "tflite" in formats and "sample_rate_hz" in facts:
    for mode in quantizations:
      _write_codec(run, facts, out / "tflite" / mode)
  if "saved_model" in formats:
    files.append(_export_saved_model(run, out))
  write_json(out / "export.json", {**facts, "files": files})
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


def _export_saved_model(run, out):
  """Writes the SavedModel; returns its entry of export.json."""
  folder = out / "saved_model"
  signatures, parity = saved_model.write_saved_model(run, folder)
  paths = sorted(path for path in folder.rglob("*") if path.is_file())
  return {
    "file": "saved_model",
    "quantization": "none",
    "signatures": signatures,
    "bytes": sum(path.stat().st_size for path in paths),
    "sha256": {str(path.relative_to(folder)): sha256(path) for path in paths},
    "parity": parity,
    "warmup_requests": (folder / saved_model.WARMUP_REQUESTS).exists(),
  }


def device_endpoints(run) -> list[Endpoint]:
  """The endpoints that devices need.

  Args:
    run: `tfvq.training.stages.Run`.
  """
  if isinstance(run.autoencoder, models.SpeechVQVAE):
    return speech_endpoints(run.autoencoder, run.task.corpus)
  return image_endpoints(run)


def _has_same_codebook(model, autoencoder):
  """Whether two autoencoders are of one kind and have one codebook, up to the rounding in a released one."""
  if type(model) is not type(autoencoder):
    return False
  codebook, expected = (np.array(found.quantizer.codebook) for found in (model, autoencoder))
  return codebook.shape == expected.shape and np.max(np.abs(codebook - expected)) < 0.01 * np.max(np.abs(expected))


def _facts(run, model_path):
  """The facts of export.json about the model as a whole."""
  model = run.autoencoder
  num_embeddings = model.quantizer.num_embeddings
  facts = {"task": run.config.task, "num_embeddings": num_embeddings, "autoencoder_sha256": sha256(model_path)}
  if isinstance(model, models.SpeechVQVAE):
    codes_per_second = SAMPLE_RATE_HZ / model.hop_samples * math.prod(model.frame_shape)
    return {
      **facts,
      "sample_rate_hz": SAMPLE_RATE_HZ,
      "hop_samples": model.hop_samples,
      "frame_shape": list(model.frame_shape),
      "codes_per_second": codes_per_second,
      "kilobits_per_second": float(codes_per_second * np.log2(num_embeddings) / 1000),
      "speakers": run.task.corpus.speakers,
    }
  code_shape = list(model.encoder.output_shape[1:-1])
  return {
    **facts,
    "image_shape": list(run.task.image_shape),
    "code_shape": code_shape,
    "bits_per_image": float(math.prod(code_shape) * np.log2(num_embeddings)),
  }


def _write_codec(run, facts, folder):
  """Writes codec.json: what `export.device` needs to know about the files of a codec."""
  model = run.autoencoder
  write_json(
    folder / "codec.json",
    {
      **{key: facts[key] for key in _CODEC_FACTS},
      "temperature": np.broadcast_to(run.config.samples.temperature, [model.decoder.head.num_variables]).tolist(),
      "encoder_context_frames": model.encoder_context_frames,
      "encoder_frames": ENCODER_FRAMES,
      "conditioner_context_frames": model.conditioner_context_frames,
      "condition_frames": CONDITION_FRAMES,
      "steps_per_frame": model.steps_per_frame,
      "channels": model.decoder.channels,
      "dilation_rates": list(model.decoder.dilation_rates),
      "noise_shape": list(model.decoder.head.noise_shape),
      "num_bands": model.audio_values.num_bands,
      "synthesis_steps": synthesis_steps(model),
      "synthesis_context": CONTEXT_STEPS,
      "files": {f"{name}.tflite": sha256(folder / f"{name}.tflite") for name in PARTS},
    },
  )


def _signature(endpoint: Endpoint):
  return {
    "inputs": {name: [spec.shape.as_list(), spec.dtype.name] for name, spec in endpoint.inputs.items()},
    "input_ranges": {name: list(limits) for name, limits in endpoint.ranges.items()},
    "outputs": {
      name: [output.shape.as_list(), output.dtype.name] for name, output in endpoint.concrete.structured_outputs.items()
    },
  }


def _summary(file):
  """The parity of a file in words, and what it lacks."""
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
