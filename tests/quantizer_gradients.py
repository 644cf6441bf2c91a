"""Gradients of quantisers, in float64."""

import tensorflow as tf

FLOAT64 = {"dtype": "float64"}


def gradients_of(quantizer, z_e, weights, training=True):
  """Gradients of sum(weights * z_q) with respect to z_e and the trainable weights."""
  z_e = tf.constant(z_e)
  with tf.GradientTape() as tape:
    tape.watch(z_e)
    loss = tf.reduce_sum(weights * quantizer(z_e, training=training))
  return [gradient.numpy() for gradient in tape.gradient(loss, [z_e, *quantizer.trainable_weights])]


def loss_gradient(quantizer, z_e):
  """The sum of a quantiser's losses, and its gradient with respect to z_e."""
  z_e = tf.constant(z_e)
  with tf.GradientTape() as tape:
    tape.watch(z_e)
    quantizer(z_e, training=True)
    loss = tf.add_n([tf.cast(loss, tf.float64) for loss in quantizer.losses])
  return loss.numpy(), tape.gradient(loss, z_e).numpy()
