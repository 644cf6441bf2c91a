"""How far an exported file is from the model that it was made of, on real data."""

import numpy as np
import tensorflow as tf

from .endpoint import Endpoint

_AT_ONCE = 1024  # vectors whose differences from all of the codebook are in memory


def measure_parity(endpoint: Endpoint, runner, examples) -> dict[str, dict[str, float]]:
  """Compares a file with its endpoint.

  Args:
    endpoint: The endpoint.
    runner: `tflite.Runner` or `onnx.Runner` of the file.
    examples: Inputs to compare on, one after another from the state's beginning.

  Returns:
    For each output its figures. Integers: "share_equal". Floats: "max_error" and "relative_rms_error", the latter
    in parts of the output's own root mean square. Codes that come with the vectors they are of, "z_e", have two more:
    "share_sure" of those that the error cannot have changed, see `sure_codes`, and how many of these are equal.
  """
  function = endpoint.concrete
  expected, given = {}, {}
  endpoint.reset()
  runner.reset()
  for example in examples:
    outputs, told = function(*(tf.constant(example[name]) for name in endpoint.inputs)), runner(**example)
    for name, value in outputs.items():
      expected.setdefault(name, []).append(value.numpy())
      given.setdefault(name, []).append(told[name])
  expected, given = ({name: np.stack(values) for name, values in found.items()} for found in (expected, given))
  figures = {name: compare(expected[name], given[name]) for name in expected}
  if "z_e" in expected:
    codebook = np.array(endpoint.model.quantizer.codebook)
    vectors = (found["z_e"].reshape(-1, codebook.shape[1]) for found in (expected, given))
    sure = sure_codes(*vectors, codebook)
    equal = (expected["codes"] == given["codes"]).reshape(-1)[sure]
    share_equal = float(np.mean(equal)) if len(equal) else 1.0
    figures["codes"] |= {"share_sure": float(np.mean(sure)), "share_equal_of_sure": share_equal}
  return figures


def sure_codes(z_e, z_e_given, codebook) -> np.ndarray:
  """Where an error cannot have changed the code: the nearest other code's border is further away than the error.

  Distances are taken to be computed in float32, whose rounding moves a border too.

  Args:
    z_e: What was to be quantised, float [N, D].
    z_e_given: The same with its error, float [N, D].
    codebook: Float [K, D].

  Returns:
    Boolean [N].
  """
  parts = [
    _sure_codes(z_e[start : start + _AT_ONCE], z_e_given[start : start + _AT_ONCE], codebook)
    for start in range(0, len(z_e), _AT_ONCE)
  ]
  return np.concatenate(parts) if parts else np.zeros(0, bool)


def _sure_codes(z_e, z_e_given, codebook):
  distances = np.linalg.norm(z_e[:, np.newaxis] - codebook, axis=-1)
  nearest = np.argmin(distances, axis=-1)
  between = np.linalg.norm(codebook[nearest][:, np.newaxis] - codebook, axis=-1)
  border = np.square(distances) - np.square(distances.min(axis=-1, keepdims=True))
  border = np.divide(border, 2 * between, out=np.full_like(border, np.inf), where=between > 0)
  largest = np.sum(np.square(z_e), axis=-1) + np.max(np.sum(np.square(codebook), axis=-1))
  rounding = 4 * np.finfo(np.float32).eps * largest[:, np.newaxis] / np.maximum(between, 1e-12)
  return (border - rounding).min(axis=-1) > np.linalg.norm(z_e - z_e_given, axis=-1)


def compare(expected, given) -> dict[str, float]:
  """Figures of an output beside what is expected, see `measure_parity`."""
  if np.issubdtype(expected.dtype, np.integer):
    return {"share_equal": float(np.mean(expected == given))}
  error = np.abs(expected.astype(np.float64) - given)
  rms = np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
  return {"max_error": float(error.max()), "relative_rms_error": float(np.sqrt(np.mean(error**2)) / max(rms, 1e-12))}
