"""The gated activation of PixelCNN and WaveNet."""

import tensorflow as tf


def gated_activation(x: tf.Tensor) -> tf.Tensor:
  """tanh(x_f) * sigmoid(x_g), where x_f and x_g are the halves of the last dimension, [..., 2C] -> [..., C].

  Reference: arXiv 1606.05328, eq. 2.
  """
  filters, gates = tf.split(x, 2, axis=-1)
  return tf.tanh(filters) * tf.sigmoid(gates)
