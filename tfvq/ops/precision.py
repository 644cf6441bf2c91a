"""Precisions in which losses and distributions are computed."""

import tensorflow as tf


def full_precision(dtype) -> str:
  """A dtype as it is, or float32 in place of a 16-bit float, by name."""
  name = tf.as_dtype(dtype).name
  return "float32" if name in ("float16", "bfloat16") else name


def to_full_precision(x: tf.Tensor) -> tf.Tensor:
  """A tensor as it is, or as float32 where it has 16-bit floats."""
  return tf.cast(x, full_precision(x.dtype))
