"""How far an exported file is from the model that it was made of, on real data."""

import numpy as np
import tensorflow as tf

from export.endpoint import Endpoint


def measure_parity(endpoint: Endpoint, runner, examples) -> dict[str, dict[str, float]]:
  """Compares a file with its endpoint.

  Args:
    endpoint: The endpoint.
    runner: `tflite.Runner` or `onnx.Runner` of the file.
    examples: Inputs to compare on, each from the state at the beginning.

  Returns:
    For each output its figures. Integers: "share_equal". Floats: "max_error" and "relative_rms_error", the latter
    in parts of the output's own root mean square.
  """
  function = endpoint.concrete()
  expected, given = {}, {}
  for example in examples:
    endpoint.reset()
    runner.reset()
    outputs, told = function(*(tf.constant(example[name]) for name in endpoint.inputs)), runner(**example)
    for name, value in outputs.items():
      expected.setdefault(name, []).append(value.numpy())
      given.setdefault(name, []).append(told[name])
  return {name: _compare(np.stack(expected[name]), np.stack(given[name])) for name in expected}


def sure_codes(z_e, z_e_given, codebook) -> np.ndarray:
  """Where an error cannot have changed the code: the nearest other code's border is further away than the error.

  Args:
    z_e: What was to be quantised, float [N, D].
    z_e_given: The same with its error, float [N, D].
    codebook: Float [K, D].

  Returns:
    Boolean [N].
  """
  distances = np.linalg.norm(z_e[:, np.newaxis] - codebook, axis=-1)
  nearest = np.argmin(distances, axis=-1)
  between = np.linalg.norm(codebook[nearest][:, np.newaxis] - codebook, axis=-1)
  border = np.square(distances) - np.square(distances.min(axis=-1, keepdims=True))
  border = np.divide(border, 2 * between, out=np.full_like(border, np.inf), where=between > 0)
  return border.min(axis=-1) > np.linalg.norm(z_e - z_e_given, axis=-1)


def _compare(expected, given):
  if np.issubdtype(expected.dtype, np.integer):
    return {"share_equal": float(np.mean(expected == given))}
  error = np.abs(expected.astype(np.float64) - given)
  rms = np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
  return {"max_error": float(error.max()), "relative_rms_error": float(np.sqrt(np.mean(error**2)) / max(rms, 1e-12))}
