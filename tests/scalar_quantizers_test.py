"""Quantisers of single channels against their formulas, in float64."""

import itertools

import numpy as np
import tensorflow as tf

from tests.quantizer_gradients import FLOAT64, gradients_of
from tfvq.layers import FiniteScalarQuantizer, LookupFreeQuantizer


def test_finite_scalar_codes_are_the_nearest_of_all_grid_points(rng):
  quantizer = FiniteScalarQuantizer((4, 3, 2), **FLOAT64)
  grid = np.array(list(itertools.product(*(np.linspace(-1, 1, levels) for levels in (2, 3, 4)))))[:, ::-1]
  np.testing.assert_allclose(quantizer.decode(np.arange(24)), grid, atol=1e-12)
  z_e = 2 * rng.normal(size=(300, 3))
  codes = np.argmin(np.sum((np.tanh(z_e)[:, np.newaxis] - grid) ** 2, axis=-1), axis=-1)
  np.testing.assert_array_equal(quantizer.encode(z_e), codes)
  assert len(np.unique(codes)) == 24
  np.testing.assert_allclose(quantizer(z_e), grid[codes], atol=1e-12)
  assert not quantizer.losses


def test_the_finite_scalar_gradient_is_that_of_tanh(rng):
  quantizer = FiniteScalarQuantizer((5, 4), **FLOAT64)
  z_e, weights = rng.normal(size=(10, 2)), rng.normal(size=(10, 2))
  np.testing.assert_allclose(gradients_of(quantizer, z_e, weights)[0], weights / np.cosh(z_e) ** 2, rtol=1e-9)


def test_linear_maps_project_to_the_channels_and_back(rng):
  quantizer = FiniteScalarQuantizer((5, 4), 6, **FLOAT64)
  for weight in quantizer.weights:
    weight.assign(rng.normal(size=weight.shape))
  kernel_in, bias_in, kernel_out, bias_out = (np.array(weight) for weight in quantizer.weights)
  plain = FiniteScalarQuantizer((5, 4), **FLOAT64)
  z_e, weights = rng.normal(size=(10, 6)), rng.normal(size=(10, 6))
  channels = z_e @ kernel_in + bias_in
  np.testing.assert_array_equal(quantizer.encode(z_e), plain.encode(channels))
  values = plain(channels).numpy()
  np.testing.assert_allclose(quantizer(z_e), values @ kernel_out + bias_out, rtol=1e-9)
  at_channels = weights @ kernel_out.T / np.cosh(channels) ** 2
  expected = [at_channels @ kernel_in.T, z_e.T @ at_channels, at_channels.sum(0), values.T @ weights, weights.sum(0)]
  for gradient, value in zip(gradients_of(quantizer, z_e, weights), expected, strict=True):
    np.testing.assert_allclose(gradient, value, rtol=1e-9, atol=1e-12)


def test_lookup_free_codes_are_the_nearest_corners(rng):
  quantizer = LookupFreeQuantizer(5, **FLOAT64)
  corners = np.array(list(itertools.product((-1, 1), repeat=5)))[:, ::-1]
  np.testing.assert_array_equal(quantizer.decode(np.arange(32)), corners)
  z_e = rng.normal(size=(300, 5))
  codes = np.argmin(np.sum((z_e[:, np.newaxis] - corners) ** 2, axis=-1), axis=-1)
  np.testing.assert_array_equal(quantizer.encode(z_e), codes)
  weights = rng.normal(size=(300, 5))
  np.testing.assert_allclose(gradients_of(quantizer, z_e, weights)[0], weights, rtol=1e-12)
  assert quantizer.encode(np.zeros((1, 5))) == 0


def soft_codes(z_e, temperature):
  """Probabilities of all corners, [N, 2^D], by enumeration."""
  corners = np.array(list(itertools.product((-1, 1), repeat=z_e.shape[1])))
  distances = np.sum((z_e[:, np.newaxis] - corners) ** 2, axis=-1)
  weights = np.exp(-distances / temperature)
  return weights / weights.sum(axis=-1, keepdims=True)


def entropy(probabilities):
  return -np.sum(probabilities * np.log(probabilities), axis=-1)


def test_the_entropy_penalty_is_that_of_all_codes(rng):
  z_e = 0.5 * rng.normal(size=(40, 6))
  quantizer = LookupFreeQuantizer(6, entropy_weight=0.3, diversity=1.7, temperature=0.8, **FLOAT64)
  losses = quantizer.quantize_vectors(z_e).losses
  np.testing.assert_allclose(losses["commitment"], 0.25 * np.mean((z_e - np.sign(z_e)) ** 2), rtol=1e-9)
  codes = soft_codes(z_e, 0.8)
  np.testing.assert_allclose(
    losses["entropy"], 0.3 * (np.mean(entropy(codes)) - 1.7 * entropy(codes.mean(axis=0))), rtol=1e-9
  )


def test_the_gradient_of_the_entropy_penalty_is_its_slope(rng):
  z_e = rng.normal(size=(5, 10))
  quantizer = LookupFreeQuantizer(10, entropy_weight=0.3, temperature=2.0, **FLOAT64)
  penalty = lambda z: quantizer.quantize_vectors(tf.constant(z)).losses["entropy"]
  variable = tf.constant(z_e)
  with tf.GradientTape() as tape:
    tape.watch(variable)
    loss = penalty(variable)
  gradient = tape.gradient(loss, variable).numpy()
  for row, column in ((0, 0), (2, 7), (4, 9)):
    step = np.zeros_like(z_e)
    step[row, column] = 1e-5
    slope = (penalty(z_e + step) - penalty(z_e - step)) / 2e-5
    np.testing.assert_allclose(gradient[row, column], slope, rtol=1e-5)


def test_the_entropy_of_many_bits_bounds_that_of_all_codes(rng):
  z_e = 0.3 * rng.normal(size=(20, 11))
  quantizer = LookupFreeQuantizer(11, entropy_weight=1.0, **FLOAT64)
  codes = soft_codes(z_e, 1.0)
  joint = np.mean(entropy(codes)) - entropy(codes.mean(axis=0))
  assert quantizer.quantize_vectors(z_e).losses["entropy"] <= joint + 1e-9
  groups = soft_codes(z_e[:, :8], 1.0).mean(axis=0), soft_codes(z_e[:, 8:], 1.0).mean(axis=0)
  expected = np.mean(entropy(codes)) - sum(entropy(group) for group in groups)
  np.testing.assert_allclose(quantizer.quantize_vectors(z_e).losses["entropy"], expected, rtol=1e-9)
