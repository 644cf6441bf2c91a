"""Measures how much the outputs of an exported file differ from those of its model on real data."""

import numpy as np
import tensorflow as tf

from tfvq.endpoints.endpoint import Endpoint

_VECTORS_PER_CHUNK = 1024  # bounds the memory for distances to every codebook vector


def measure_parity(endpoint: Endpoint, runner, examples) -> dict[str, dict[str, float]]:
  """Compares a file with its endpoint.

  Args:
    endpoint: The endpoint.
    runner: `tflite.Runner` or `onnx.Runner` of the file.
    examples: Inputs to compare on; if there is a state, consecutive ones from the initial state on.

  Returns:
    Metrics of each output. Integers: "share_equal", the fraction of equal values. Floats: "max_error", and
    "relative_rms_error", the root mean square of the error divided by that of the output. If there is an output "z_e",
    the vectors before quantisation, "codes" also has "share_sure", the fraction of codes for which the error of z_e is
    too small to change the code (see `tfvq.layers.Quantizer.margin`), and "share_equal_of_sure", the fraction of these
    that are equal.
  """
  function = endpoint.concrete
  expected, given = {}, {}
  endpoint.reset()
  runner.reset()
  for example in examples:
    own_outputs = function(*(tf.constant(example[name]) for name in endpoint.inputs))
    outputs = runner(**example)
    for name, value in own_outputs.items():
      expected.setdefault(name, []).append(value.numpy())
      given.setdefault(name, []).append(outputs[name])
  expected, given = ({name: np.stack(values) for name, values in found.items()} for found in (expected, given))
  figures = {name: compare(expected[name], given[name]) for name in expected}
  if "z_e" in expected:
    quantizer = endpoint.model.quantizer
    errors = np.linalg.norm(expected["z_e"].astype(np.float64) - given["z_e"], axis=-1)
    sure = errors < quantizer.margin(expected["z_e"])
    is_equal = (expected["codes"] == given["codes"]).reshape(*errors.shape, -1).all(axis=-1)
    equal = is_equal[sure]
    share_equal = float(np.mean(equal)) if len(equal) else 1.0
    figures["codes"] |= {"share_sure": float(np.mean(sure)), "share_equal_of_sure": share_equal}
  return figures


def compare(expected, given) -> dict[str, float]:
  """Metrics of an output compared with the expected one, see `measure_parity`."""
  if np.issubdtype(expected.dtype, np.integer):
    return {"share_equal": float(np.mean(expected == given))}
  error = np.abs(expected.astype(np.float64) - given)
  rms = np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
  return {"max_error": float(error.max()), "relative_rms_error": float(np.sqrt(np.mean(error**2)) / max(rms, 1e-12))}
