"""Compares cached sampling of code grids with naive sampling, and with TensorFlow Probability's PixelCNN.

pip install -r benchmarks/requirements.txt
python -m benchmarks.sampling
"""

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from benchmarks.timing import medians, report
from tfvq.models import PixelCNN, gumbel_noise, noise_shape, sample, sample_naive

BATCH_SIZE = 16


def sampler(model, draw, jit_compile=False):
  """Makes a function without arguments that samples a batch."""
  noise = gumbel_noise(0, noise_shape(model, BATCH_SIZE))
  compiled = tf.function(lambda noise: draw(model, noise), jit_compile=jit_compile)
  return lambda: compiled(noise)


def beside_naive():
  prior = PixelCNN(512, (21, 21), filters=64, num_layers=8)
  functions = {
    "naive": sampler(prior, sample_naive),
    "cached": sampler(prior, sample),
    "cached, XLA": sampler(prior, sample, jit_compile=True),
  }
  title = f"{BATCH_SIZE} grids of 21x21, K=512, {prior.count_params():,} parameters"
  report(title, medians(functions, rounds=1), "naive", BATCH_SIZE, "grids")


def beside_tensorflow_probability():
  peer = tfp.distributions.PixelCNN(image_shape=(16, 16, 1), num_filters=64, num_resnet=5, num_hierarchies=1)
  peer_sample = tf.function(lambda: peer.sample(BATCH_SIZE, seed=0))
  peer.log_prob(np.zeros([1, 16, 16, 1], np.float32))
  peer_parameters = sum(int(np.prod(variable.shape)) for variable in peer.trainable_variables)
  own = PixelCNN(256, (16, 16), filters=64, num_layers=11, kernel_size=9, ordinal=True)
  functions = {
    "TensorFlow Probability": peer_sample,
    "cached": sampler(own, sample),
    "cached, XLA": sampler(own, sample, jit_compile=True),
  }
  title = f"{BATCH_SIZE} grids of 16x16; parameters: TFP {peer_parameters:,}, tfvq {own.count_params():,}"
  report(title, medians(functions, rounds=1), "TensorFlow Probability", BATCH_SIZE, "grids")


if __name__ == "__main__":
  beside_naive()
  beside_tensorflow_probability()
