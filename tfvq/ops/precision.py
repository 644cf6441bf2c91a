"""The precision of losses and distributions."""

import tensorflow as tf


def full_precision(dtype) -> str:
  """The name of a dtype; "float32" for 16-bit floats."""
  name = tf.as_dtype(dtype).name
  return "float32" if name in ("float16", "bfloat16") else name


def to_full_precision(x: tf.Tensor) -> tf.Tensor:
  """Casts 16-bit floats to float32; other tensors are unchanged."""
  return tf.cast(x, full_precision(x.dtype))
