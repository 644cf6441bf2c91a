import importlib

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from tfvq.ops import kmeans, nearest_code, quantize
from tfvq.ops.gated import gated_activation
from tfvq.ops.nearest_code import split_matmul
from tfvq.ops.product import product, product_precision

# The package's attribute of that name is the function.
nearest_code_module = importlib.import_module("tfvq.ops.nearest_code")


def brute_force_distances(z_e, codebook):
  difference = z_e[..., np.newaxis, :].astype(np.float64) - codebook.astype(np.float64)
  return np.sum(difference**2, axis=-1)


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
  leading=st.lists(st.integers(0, 5), max_size=3),
  num_codes=st.integers(1, 40),
  dim=st.integers(1, 9),
  seed=st.integers(0, 99),
)
def test_nearest_code_is_nearest_in_float64(leading, num_codes, dim, seed):
  rng = np.random.default_rng(seed)
  z_e = rng.normal(size=(*leading, dim)).astype(np.float32)
  codebook = rng.normal(size=(num_codes, dim)).astype(np.float32)
  codes = nearest_code(z_e, codebook).numpy()
  assert codes.shape == tuple(leading)
  distances = brute_force_distances(z_e, codebook)
  chosen = np.take_along_axis(distances, codes[..., np.newaxis], axis=-1)[..., 0]
  np.testing.assert_allclose(chosen, distances.min(axis=-1), atol=1e-5)


def test_equally_near_codes_give_the_lowest_index():
  # Small integers: every product is exact, so that ties are ties.
  codebook = np.array([[4, 0], [0, 2], [2, 0], [0, 2], [2, 0]], np.float32)
  z_e = np.array([[0, 3], [3, 0], [1, 1]], np.float32)
  np.testing.assert_array_equal(nearest_code(z_e, codebook), [1, 0, 1])


@pytest.mark.parametrize("num_vectors", [0, 1, 63, 64, 65, 300])
def test_tables_change_nothing(num_vectors, monkeypatch, rng):
  z_e = rng.normal(size=(num_vectors, 4)).astype(np.float32)
  codebook = rng.normal(size=(150, 4)).astype(np.float32)
  whole = nearest_code(z_e, codebook).numpy()
  # Tables of 64 vectors and 64 codes, the last one filled up.
  monkeypatch.setattr(nearest_code_module, "_TABLE_CODES", 64)
  monkeypatch.setattr(nearest_code_module, "_TABLE_BYTES", 64 * 64 * 4)
  np.testing.assert_array_equal(nearest_code(z_e, codebook), whole)
  unknown_length = tf.function(nearest_code, input_signature=[tf.TensorSpec([None, 4]), tf.TensorSpec([150, 4])])
  np.testing.assert_array_equal(unknown_length(z_e, codebook), whole)


@pytest.mark.parametrize("num_codes", [1, 5, 33, 150])
def test_codes_that_fill_up_a_table_are_never_chosen_where_products_are_split(num_codes, monkeypatch, rng):
  z_e = rng.normal(size=(40, 4)).astype(np.float32)
  codebook = rng.normal(size=(num_codes, 4)).astype(np.float32)
  whole = nearest_code(z_e, codebook).numpy()
  monkeypatch.setattr(nearest_code_module, "_exact_matmul", split_matmul)
  monkeypatch.setattr(nearest_code_module, "_TABLE_CODES", 64)
  np.testing.assert_array_equal(nearest_code(z_e, codebook), whole)


def test_of_equally_near_codes_the_lowest_in_any_table(monkeypatch):
  monkeypatch.setattr(nearest_code_module, "_TABLE_CODES", 32)
  codebook = np.tile([[5.0, 5.0]], (100, 1)).astype(np.float32)
  codebook[[7, 9, 40, 99]] = 1.0
  np.testing.assert_array_equal(nearest_code(np.ones([3, 2], np.float32), codebook), [7, 7, 7])


def test_float64_distances_tell_apart_what_float32_cannot():
  codebook = np.array([[1.0], [1.0 + 1e-6]])
  np.testing.assert_array_equal(nearest_code(np.array([[1.0 + 1e-6]]), codebook), [1])


def test_split_matmul_is_accurate_with_bfloat16_parts(rng):
  a = rng.normal(size=(50, 64)).astype(np.float32)
  b = rng.normal(size=(64, 70)).astype(np.float32)
  exact = a.astype(np.float64) @ b.astype(np.float64)
  error = np.abs(split_matmul(a, b).numpy() - exact).max()
  rounded = tf.cast(tf.matmul(tf.cast(a, tf.bfloat16), tf.cast(b, tf.bfloat16)), tf.float64)
  assert error < 1e-5 < np.abs(rounded.numpy() - exact).max()


def test_quantize_losses_and_gradients_are_the_closed_forms(rng):
  z_e = tf.constant(rng.normal(size=(3, 5, 2)).astype(np.float32))
  codebook = tf.constant(rng.normal(size=(7, 2)).astype(np.float32))
  weights = tf.constant(rng.normal(size=(3, 5, 2)).astype(np.float32))
  with tf.GradientTape(persistent=True) as tape:
    tape.watch([z_e, codebook])
    quantized = quantize(z_e, codebook)
    output = tf.reduce_sum(quantized.z_q * weights)
  e = codebook.numpy()[quantized.codes.numpy()]
  difference = z_e.numpy() - e
  np.testing.assert_allclose(quantized.z_q, e, rtol=1e-6)
  np.testing.assert_allclose(quantized.losses.codebook, np.mean(difference**2), rtol=1e-5)
  np.testing.assert_allclose(quantized.losses.commitment, np.mean(difference**2), rtol=1e-5)
  # Straight through: the gradient passes the quantiser as if it were not there, and does not reach the codebook.
  np.testing.assert_array_equal(tape.gradient(output, z_e), weights)
  assert tape.gradient(output, codebook) is None
  # d/dz mean (z - e)^2 = 2 (z - e) / N, and for each code the negative sum over its vectors.
  np.testing.assert_allclose(tape.gradient(quantized.losses.commitment, z_e), 2 * difference / 30, rtol=1e-5)
  assert tape.gradient(quantized.losses.commitment, codebook) is None
  assert tape.gradient(quantized.losses.codebook, z_e) is None
  expected = np.zeros((7, 2))
  np.add.at(expected, quantized.codes.numpy().ravel(), -2 * difference.reshape(-1, 2) / 30)
  gradient = tf.convert_to_tensor(tape.gradient(quantized.losses.codebook, codebook))
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_quantize_leaves_masked_positions_out_of_the_losses(rng):
  z_e = rng.normal(size=(4, 6, 3)).astype(np.float32)
  codebook = rng.normal(size=(5, 3)).astype(np.float32)
  mask = np.arange(6) < np.array([[6], [2], [0], [3]])
  masked = quantize(z_e, codebook, mask)
  only_valid = quantize(z_e[mask], codebook)
  np.testing.assert_allclose(masked.losses.commitment, only_valid.losses.commitment, rtol=1e-5)
  np.testing.assert_allclose(masked.losses.codebook, only_valid.losses.codebook, rtol=1e-5)


def test_quantize_of_nothing_costs_nothing():
  quantized = quantize(np.zeros([0, 4, 3], np.float32), np.ones([5, 3], np.float32))
  assert quantized.z_q.shape == (0, 4, 3)
  assert quantized.losses.codebook == 0 and quantized.losses.commitment == 0


def test_kmeans_finds_separate_clusters(rng):
  centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
  vectors = np.repeat(centres, 50, axis=0) + rng.normal(scale=0.1, size=(200, 2)).astype(np.float32)
  found = kmeans(vectors, 4, num_iterations=20).numpy()
  # Lloyd's algorithm may leave a cluster shared; an extra centre or two must cover them all.
  found_more = kmeans(vectors, 12, num_iterations=20).numpy()
  assert np.isfinite(found).all()
  assert brute_force_distances(centres, found_more).min(axis=-1).max() < 0.1


def test_kmeans_with_fewer_vectors_than_centres_puts_a_centre_on_each(rng):
  vectors = rng.normal(size=(3, 2)).astype(np.float32)
  centres = kmeans(vectors, 8).numpy()
  np.testing.assert_allclose(brute_force_distances(vectors, centres).min(axis=-1), 0, atol=1e-10)
  with pytest.raises(ValueError, match="at least one vector"):
    kmeans(vectors[:0], 8)


def test_gated_activation_is_tanh_times_sigmoid(rng):
  x = rng.normal(size=(3, 8))
  expected = np.tanh(x[:, :4]) / (1 + np.exp(-x[:, 4:]))
  np.testing.assert_allclose(gated_activation(x), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(7, 20), (2, 3, 20)])
def test_products_round_their_factors_where_they_are_told_to(shape, rng):
  x, kernel = rng.normal(size=shape).astype(np.float32), rng.normal(size=(20, 5)).astype(np.float32)
  rounded = lambda value: tf.cast(tf.cast(value, tf.bfloat16), tf.float64).numpy()
  with pytest.raises(KeyError), product_precision(tf.bfloat16):
    given = product(x, kernel, tf.float32)
    raise KeyError
  assert given.dtype == tf.float32
  # The sum too is rounded to eight bits.
  np.testing.assert_allclose(given, rounded(x) @ rounded(kernel), rtol=2**-8, atol=1e-5)
  np.testing.assert_allclose(product(x, kernel, tf.float32), x.astype(np.float64) @ kernel, rtol=1e-5, atol=1e-5)
