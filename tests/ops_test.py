import importlib

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from tfvq.ops import kmeans, nearest_code, quantize
from tfvq.ops.gated import gated_activation
from tfvq.ops.matmul import matmul, matmul_precision
from tfvq.ops.nearest_code import is_finite, split_matmul

# The attribute of the package with this name is the function.
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


def test_ties_give_lowest_index():
  # Products of small integers are exact, so that ties are exact too.
  codebook = np.array([[4, 0], [0, 2], [2, 0], [0, 2], [2, 0]], np.float32)
  z_e = np.array([[0, 3], [3, 0], [1, 1]], np.float32)
  np.testing.assert_array_equal(nearest_code(z_e, codebook), [1, 0, 1])


def exact_codes(z_e, codebook):
  return np.concatenate([np.argmin(brute_force_distances(part, codebook), axis=-1) for part in np.split(z_e, 10)])


NEAR_AND_FAR = {
  "near zero": lambda rng: (rng.normal(size=(500, 16)), rng.normal(size=(300, 16))),
  "far from zero": lambda rng: (rng.normal(1000, 1, (500, 16)), rng.normal(1000, 1, (300, 16))),
  "far from the codes": lambda rng: (rng.normal(1000, 1, (500, 16)), rng.normal(0, 1, (300, 16))),
  "two far clusters": lambda rng: tuple(
    rng.normal(size=(size, 8)) + 1000 * rng.choice([-1, 1], (size, 1)) for size in (500, 300)
  ),
  "dense on a line": lambda rng: (rng.uniform(0, 255, (200, 1)), rng.uniform(0, 255, (30_000, 1))),
  "16-bit audio": lambda rng: (rng.normal(30_000, 300, (500, 1)), rng.normal(30_000, 300, (1000, 1))),
  "every code twice": lambda rng: (rng.normal(size=(500, 4)), np.repeat(rng.normal(size=(40, 4)), 2, axis=0)),
  "one code far away": lambda rng: (
    rng.normal(size=(500, 4)),
    np.append(rng.normal(size=(99, 4)), [[1e6] * 4], axis=0),
  ),
}


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("kind", NEAR_AND_FAR)
def test_nearest_code_is_exact_for_data_far_from_zero(kind, jit_compile, rng):
  z_e, codebook = (values.astype(np.float32) for values in NEAR_AND_FAR[kind](rng))
  codes = tf.function(nearest_code, jit_compile=jit_compile)(z_e, codebook)
  np.testing.assert_array_equal(codes, exact_codes(z_e, codebook))


def test_inexact_search_differs_only_in_close_calls(rng):
  z_e, codebook = rng.normal(size=(2000, 16)).astype(np.float32), rng.normal(size=(256, 16)).astype(np.float32)
  z_e, codebook = tf.constant(z_e), tf.constant(codebook)
  concrete = tf.function(nearest_code).get_concrete_function(z_e, codebook, exact=False)
  assert not {operation.type for operation in concrete.graph.get_operations()} & {"While", "TopKV2"}
  distances = brute_force_distances(z_e.numpy(), codebook.numpy())
  chosen = np.take_along_axis(distances, concrete(z_e, codebook).numpy()[:, np.newaxis], axis=-1)[:, 0]
  np.testing.assert_allclose(chosen, distances.min(axis=-1), atol=1e-4)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_vectors_that_are_not_finite_have_code_minus_1(jit_compile, rng):
  z_e, codebook = rng.normal(size=(40, 4)).astype(np.float32), rng.normal(size=(70, 4)).astype(np.float32)
  expected = nearest_code(z_e, codebook).numpy()
  z_e[3, 1], z_e[5, 0], z_e[39, 3] = np.nan, np.inf, -np.inf
  expected[[3, 5, 39]] = -1
  np.testing.assert_array_equal(tf.function(nearest_code, jit_compile=jit_compile)(z_e, codebook), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors_with_a_finite_norm_have_a_code_however_long_they_are(dtype):
  longest = np.sqrt(np.finfo(dtype).max / 8)
  vectors = np.array([[0.99 * longest, 0], [-0.99 * longest, 0], [1.01 * longest, 0]], dtype)
  np.testing.assert_array_equal(is_finite(tf.constant(vectors)), [True, True, False])
  np.testing.assert_array_equal(nearest_code(vectors[:2], vectors[1:2]), [0, 0])
  assert np.isfinite(np.sum((vectors[0] - vectors[1]) ** 2))


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("broken", [0, 33, 69])
def test_codes_that_are_not_finite_are_never_the_nearest(broken, jit_compile, rng):
  z_e, codebook = rng.normal(size=(60, 4)).astype(np.float32), rng.normal(size=(70, 4)).astype(np.float32)
  without = np.delete(np.arange(70), broken)
  expected = without[nearest_code(z_e, codebook[without]).numpy()]
  codebook[broken, 2] = np.nan
  np.testing.assert_array_equal(tf.function(nearest_code, jit_compile=jit_compile)(z_e, codebook), expected)


@pytest.mark.parametrize("num_vectors", [0, 1, 63, 64, 65, 300])
def test_result_does_not_depend_on_table_size(num_vectors, monkeypatch, rng):
  z_e = rng.normal(size=(num_vectors, 4)).astype(np.float32)
  codebook = rng.normal(size=(150, 4)).astype(np.float32)
  whole = nearest_code(z_e, codebook).numpy()
  # Tables of 64 vectors and 64 codes; the last one is padded.
  monkeypatch.setattr(nearest_code_module, "_TABLE_CODES", 64)
  monkeypatch.setattr(nearest_code_module, "_TABLE_BYTES", 64 * 64 * 4)
  np.testing.assert_array_equal(nearest_code(z_e, codebook), whole)
  unknown_length = tf.function(nearest_code, input_signature=[tf.TensorSpec([None, 4]), tf.TensorSpec([150, 4])])
  np.testing.assert_array_equal(unknown_length(z_e, codebook), whole)


@pytest.mark.parametrize("num_codes", [1, 5, 33, 150])
def test_padding_is_never_chosen_with_split_matmul(num_codes, monkeypatch, rng):
  z_e = rng.normal(size=(40, 4)).astype(np.float32)
  codebook = rng.normal(size=(num_codes, 4)).astype(np.float32)
  whole = nearest_code(z_e, codebook).numpy()
  monkeypatch.setattr(nearest_code_module, "_exact_matmul", split_matmul)
  monkeypatch.setattr(nearest_code_module, "_TABLE_CODES", 64)
  np.testing.assert_array_equal(nearest_code(z_e, codebook), whole)


def test_ties_in_different_tables_give_lowest_index(monkeypatch):
  monkeypatch.setattr(nearest_code_module, "_TABLE_CODES", 32)
  codebook = np.tile([[5.0, 5.0]], (100, 1)).astype(np.float32)
  codebook[[7, 9, 40, 99]] = 1.0
  np.testing.assert_array_equal(nearest_code(np.ones([3, 2], np.float32), codebook), [7, 7, 7])


def test_float64_resolves_distances_beyond_float32():
  codebook = np.array([[1.0], [1.0 + 1e-6]])
  np.testing.assert_array_equal(nearest_code(np.array([[1.0 + 1e-6]]), codebook), [1])


def test_split_matmul_is_accurate_with_bfloat16_parts(rng):
  a = rng.normal(size=(50, 64)).astype(np.float32)
  b = rng.normal(size=(64, 70)).astype(np.float32)
  exact = a.astype(np.float64) @ b.astype(np.float64)
  error = np.abs(split_matmul(a, b).numpy() - exact).max()
  rounded = tf.cast(tf.matmul(tf.cast(a, tf.bfloat16), tf.cast(b, tf.bfloat16)), tf.float64)
  assert error < 1e-5 < np.abs(rounded.numpy() - exact).max()


def test_quantize_losses_and_gradients_match_closed_forms(rng):
  z_e = tf.constant(rng.normal(size=(3, 5, 2)).astype(np.float32))
  codebook = tf.constant(rng.normal(size=(7, 2)).astype(np.float32))
  weights = tf.constant(rng.normal(size=(3, 5, 2)).astype(np.float32))
  with tf.GradientTape(persistent=True) as tape:
    tape.watch([z_e, codebook])
    quantized = quantize(z_e, codebook)
    output = tf.reduce_sum(quantized.z_q * weights)
  e = codebook.numpy()[quantized.codes.numpy()]
  difference = z_e.numpy() - e
  np.testing.assert_array_equal(quantized.z_q, e)
  np.testing.assert_allclose(quantized.losses["codebook"], np.mean(difference**2), rtol=1e-5)
  np.testing.assert_allclose(quantized.losses["commitment"], np.mean(difference**2), rtol=1e-5)
  # Straight-through: the gradient is copied to z_e, and the codebook gets none.
  np.testing.assert_array_equal(tape.gradient(output, z_e), weights)
  assert tape.gradient(output, codebook) is None
  # d/dz mean (z - e)^2 = 2 (z - e) / N, and for each code the negative sum over its vectors.
  np.testing.assert_allclose(tape.gradient(quantized.losses["commitment"], z_e), 2 * difference / 30, rtol=1e-5)
  assert tape.gradient(quantized.losses["commitment"], codebook) is None
  assert tape.gradient(quantized.losses["codebook"], z_e) is None
  expected = np.zeros((7, 2))
  np.add.at(expected, quantized.codes.numpy().ravel(), -2 * difference.reshape(-1, 2) / 30)
  gradient = tf.convert_to_tensor(tape.gradient(quantized.losses["codebook"], codebook))
  np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_quantize_ignores_masked_positions_in_losses(rng):
  z_e = rng.normal(size=(4, 6, 3)).astype(np.float32)
  codebook = rng.normal(size=(5, 3)).astype(np.float32)
  mask = np.arange(6) < np.array([[6], [2], [0], [3]])
  masked = quantize(z_e, codebook, mask)
  only_valid = quantize(z_e[mask], codebook)
  np.testing.assert_allclose(masked.losses["commitment"], only_valid.losses["commitment"], rtol=1e-5)
  np.testing.assert_allclose(masked.losses["codebook"], only_valid.losses["codebook"], rtol=1e-5)


def test_mask_may_lack_last_dimensions(rng):
  z_e, codebook = rng.normal(size=(4, 6, 2, 3)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
  mask = np.arange(6) < np.array([[6], [2], [0], [3]])
  short, full = quantize(z_e, codebook, mask), quantize(z_e, codebook, np.repeat(mask[..., np.newaxis], 2, axis=-1))
  np.testing.assert_array_equal(short.losses, full.losses)
  np.testing.assert_allclose(short.losses["commitment"], quantize(z_e[mask], codebook).losses["commitment"], rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
def test_z_q_is_exactly_the_codebook_vector(scale, rng):
  z_e, codebook = (scale * rng.normal(size=(size, 3)).astype(np.float32) for size in (50, 8))
  codebook = codebook / np.float32(scale)
  quantized = quantize(z_e, codebook)
  np.testing.assert_array_equal(quantized.z_q, codebook[quantized.codes])


def test_quantize_ignores_vectors_that_are_not_finite(rng):
  z_e, codebook = rng.normal(size=(10, 3)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
  z_e[2, 1], z_e[7, 0] = np.nan, np.inf
  good = np.isfinite(z_e).all(axis=-1)
  z_e = tf.constant(z_e)
  with tf.GradientTape() as tape:
    tape.watch(z_e)
    quantized = quantize(z_e, codebook)
    loss = tf.reduce_sum(quantized.z_q) + quantized.losses["commitment"]
  expected = quantize(z_e[good], codebook)
  np.testing.assert_array_equal(quantized.codes[~good], -1)
  np.testing.assert_array_equal(quantized.z_q[~good], codebook[[0, 0]])
  np.testing.assert_allclose(list(quantized.losses.values()), list(expected.losses.values()), rtol=1e-6)
  gradient = tape.gradient(loss, z_e).numpy()
  np.testing.assert_array_equal(gradient[~good], 0)
  assert np.isfinite(gradient).all() and np.abs(gradient[good]).min() > 0


def test_quantize_of_empty_batch_has_zero_loss():
  quantized = quantize(np.zeros([0, 4, 3], np.float32), np.ones([5, 3], np.float32))
  assert quantized.z_q.shape == (0, 4, 3)
  assert quantized.losses["codebook"] == 0 and quantized.losses["commitment"] == 0


def test_kmeans_finds_separate_clusters(rng):
  centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
  vectors = np.repeat(centres, 50, axis=0) + rng.normal(scale=0.1, size=(200, 2)).astype(np.float32)
  # Lloyd's algorithm may leave clusters without a centre; a few more centres cover them all.
  found = kmeans(vectors, 12, num_iterations=20).numpy()
  assert brute_force_distances(centres, found).min(axis=-1).max() < 0.1


def test_kmeans_round_matches_lloyd_in_float64(rng):
  vectors = rng.normal(size=(300, 3)).astype(np.float32)
  before = kmeans(vectors, 5, num_iterations=3).numpy()
  codes = np.argmin(brute_force_distances(vectors, before), axis=-1)
  expected = [vectors[codes == code].mean(axis=0, dtype=np.float64) for code in range(5)]
  np.testing.assert_allclose(kmeans(vectors, 5, num_iterations=4), expected, rtol=1e-5, atol=1e-6)


def test_kmeans_ignores_vectors_that_are_not_finite(rng):
  vectors = rng.normal(size=(100, 3)).astype(np.float32)
  with_holes = np.insert(vectors, [0, 50, 100], [[np.nan, 0, 0], [np.inf, 0, 0], [0, 0, -np.inf]], axis=0)
  np.testing.assert_array_equal(kmeans(with_holes, 7), kmeans(vectors, 7))


def test_kmeans_with_few_vectors_puts_centre_on_each(rng):
  vectors = rng.normal(size=(3, 2)).astype(np.float32)
  centres = kmeans(vectors, 8).numpy()
  np.testing.assert_allclose(brute_force_distances(vectors, centres).min(axis=-1), 0, atol=1e-10)
  with pytest.raises(ValueError, match="at least one finite vector"):
    kmeans(vectors[:0], 8)


def test_gated_activation_is_tanh_times_sigmoid(rng):
  x = rng.normal(size=(3, 8))
  expected = np.tanh(x[:, :4]) / (1 + np.exp(-x[:, 4:]))
  np.testing.assert_allclose(gated_activation(x), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(7, 20), (2, 3, 20)])
def test_matmul_precision_rounds_factors(shape, rng):
  x, kernel = rng.normal(size=shape).astype(np.float32), rng.normal(size=(20, 5)).astype(np.float32)
  rounded = lambda value: tf.cast(tf.cast(value, tf.bfloat16), tf.float64).numpy()
  with pytest.raises(KeyError), matmul_precision(tf.bfloat16):
    given = matmul(x, kernel, tf.float32)
    raise KeyError
  assert given.dtype == tf.float32
  exact = rounded(x) @ rounded(kernel)
  # A processor may round or truncate each product and each sum to the eight bits of bfloat16.
  bound = 2**-7 * np.abs(rounded(x)) @ np.abs(rounded(kernel))
  assert np.all(np.abs(given - exact) <= bound)
  assert np.abs(given - x.astype(np.float64) @ kernel).max() > 1e-4
  np.testing.assert_allclose(matmul(x, kernel, tf.float32), x.astype(np.float64) @ kernel, rtol=1e-5, atol=1e-5)
