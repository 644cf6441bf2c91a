"""Measures how much an exported file differs from its model on real data."""

import numpy as np
import tensorflow as tf

from tfvq.endpoints.endpoint import Endpoint

_VECTORS_PER_CHUNK = 1024  # bounds the memory for distances to every codebook vector


def measure_parity(endpoint: Endpoint, runner, examples) -> dict[str, dict[str, float]]:
  """Compares a file with its endpoint.

  Args:
    endpoint: The endpoint.
    runner: `tflite.Runner` or `onnx.Runner` of the file.
    examples: Inputs to compare on; if there is a state, in order from its initial value.

  Returns:
    Metrics of each output. Integers: "share_equal", the fraction of equal values. Floats: "max_error", and
    "relative_rms_error", the root mean square of the error divided by that of the output. If there is an output "z_e",
    the vectors before quantisation, "codes" also has "share_sure", the fraction of codes that the error cannot have
    changed (see `sure_codes`), and "share_equal_of_sure", the fraction of these that are equal.
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
    codebook = np.array(endpoint.model.quantizer.codebook)
    vectors = (found["z_e"].reshape(-1, codebook.shape[1]) for found in (expected, given))
    sure = sure_codes(*vectors, codebook)
    equal = (expected["codes"] == given["codes"]).reshape(-1)[sure]
    share_equal = float(np.mean(equal)) if len(equal) else 1.0
    figures["codes"] |= {"share_sure": float(np.mean(sure)), "share_equal_of_sure": share_equal}
  return figures


def sure_codes(z_e, z_e_given, codebook) -> np.ndarray:
  """Marks the vectors whose code an error cannot have changed: the error is smaller than the distance to other cells.

  The bound allows for rounding in the search for either code, with scores z.e - ||e||^2 / 2 in float32 and without
  centring. A search that centres the vectors first, or computes close distances exactly, rounds less.

  Args:
    z_e: The vectors, float [N, D].
    z_e_given: The same vectors with an error, float [N, D].
    codebook: Float [K, D].

  Returns:
    Boolean [N].
  """
  # In float64 and centred, the products below are accurate enough.
  codebook = np.asarray(codebook, np.float64)
  centre = codebook.mean(axis=0)
  centred = codebook - centre
  sizes = np.sum(np.square(centred), axis=-1)
  largest = np.max(np.sum(np.square(codebook), axis=-1))
  identities = np.unique(codebook, axis=0, return_inverse=True)[1].reshape(-1)  # the same for equal vectors
  sure = np.zeros(len(z_e), bool)
  for start in range(0, len(z_e), _VECTORS_PER_CHUNK):
    chunk = slice(start, start + _VECTORS_PER_CHUNK)
    vectors = np.asarray(z_e[chunk], np.float64)
    distances = sizes - 2 * (vectors - centre) @ centred.T  # squared, without the term that is the same for every code
    nearest = np.argmin(distances, axis=-1)
    between = sizes[nearest, np.newaxis] - 2 * centred[nearest] @ centred.T + sizes  # squared
    # An error e moves the difference of two squared distances by at most 2 ||e|| times the distance of the codes.
    differences = distances - distances.min(axis=-1, keepdims=True)
    rounding = (vectors.shape[1] + 4) * np.finfo(np.float32).eps * (np.sum(np.square(vectors), axis=-1) + largest)
    errors = np.linalg.norm(vectors - z_e_given[chunk], axis=-1)
    reach = 2 * errors[:, np.newaxis] * np.sqrt(np.maximum(between, 0)) + rounding[:, np.newaxis]
    is_same = identities[nearest, np.newaxis] == identities
    sure[chunk] = np.all((differences > reach) | is_same, axis=-1)
  return sure


def compare(expected, given) -> dict[str, float]:
  """Metrics of an output compared with the expected one, see `measure_parity`."""
  if np.issubdtype(expected.dtype, np.integer):
    return {"share_equal": float(np.mean(expected == given))}
  error = np.abs(expected.astype(np.float64) - given)
  rms = np.sqrt(np.mean(np.square(expected, dtype=np.float64)))
  return {"max_error": float(error.max()), "relative_rms_error": float(np.sqrt(np.mean(error**2)) / max(rms, 1e-12))}
