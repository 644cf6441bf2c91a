"""Mu-law companding: quantises audio to 256 values with smaller steps near zero.

Reference: arXiv 1609.03499, section 2.2 (ITU-T G.711).
"""

import numpy as np
import tensorflow as tf

_MU = 255


def mu_law_encode(x, num_values: int = 256) -> tf.Tensor:
  """Quantises audio, float [...], which is clipped to -1..1 -> int32 [...] in 0..num_values-1."""
  companded = compress(tf.clip_by_value(x, -1.0, 1.0))
  values = tf.cast(tf.floor((companded + 1) * (num_values / 2)), tf.int32)
  return tf.minimum(values, num_values - 1)


def mu_law_decode(values, num_values: int = 256) -> tf.Tensor:
  """The middle of each value's companded interval, integers [...] in 0..num_values-1 -> float32 [...] in -1..1."""
  return expand((tf.cast(values, tf.float32) + 0.5) * (2 / num_values) - 1)


def compress(x) -> tf.Tensor:
  """Applies the mu-law, float [...] in -1..1 -> float [...] in -1..1."""
  return tf.sign(x) * tf.math.log(1 + _MU * tf.abs(x)) / np.log1p(_MU)  # ONNX has no log1p


def expand(x) -> tf.Tensor:
  """The inverse of `compress`, float [...] in -1..1 -> float [...] in -1..1."""
  return tf.sign(x) * (tf.exp(tf.abs(x) * np.log1p(_MU)) - 1) / _MU
