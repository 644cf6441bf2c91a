"""Runs networks on batches that may be empty: a small last batch can leave a replica without examples."""

import tensorflow as tf


def for_any_batch(network, *inputs):
  """Runs a network on a batch that may be empty.

  TensorFlow's oneDNN convolutions return a wrong shape for an empty batch. So an empty batch is replaced by one example
  of zeros, and its output is dropped.

  Args:
    network: Function of `inputs` that treats each example independently.
    *inputs: Tensors [B, ...], None, or nested structures of these; the first one is a tensor.

  Returns:
    The network's output, [B, ...].
  """
  if inputs[0].shape[0]:
    return network(*inputs)
  batch_size = tf.shape(inputs[0])[0]
  num_missing = tf.cast(batch_size == 0, tf.int32)

  def padded(x):
    if x is None:
      return None
    x = tf.convert_to_tensor(x)
    filled = tf.pad(x, [[0, num_missing], *[[0, 0]] * (x.shape.rank - 1)])
    return tf.ensure_shape(filled, [None, *x.shape[1:]])

  return network(*tf.nest.map_structure(padded, inputs))[:batch_size]
