"""Quantisers with codebooks against their formulas, in float64; what no kind takes."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.quantizer_gradients import FLOAT64, gradients_of, loss_gradient
from tfvq.layers import (
  FiniteScalarQuantizer,
  LookupFreeQuantizer,
  ProductQuantizer,
  ResidualQuantizer,
  SoftToHardQuantizer,
  VectorQuantizer,
)
from tfvq.ops.quantize import with_gradient


def unit(vectors):
  return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def rotation(z, e):
  """The matrix of arXiv 2410.06424: |e| / |z| (I - 2 r r^T + 2 e z^T) with unit vectors."""
  r, z_unit, e_unit = unit(unit(z) + unit(e)), unit(z), unit(e)
  matrix = np.eye(len(z)) - 2 * np.outer(r, r) + 2 * np.outer(e_unit, z_unit)
  return np.linalg.norm(e) / np.linalg.norm(z) * matrix


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_gradients_of_vector_quantisation(gradient, rng):
  quantizer = VectorQuantizer(8, 4, gradient=gradient, **FLOAT64)
  z_e, weights = rng.normal(size=(20, 4)), rng.normal(size=(20, 4))
  e = quantizer.decode(quantizer.encode(z_e)).numpy()
  if gradient == "rotation":
    for z, target in zip(z_e, e, strict=True):
      np.testing.assert_allclose(rotation(z, target) @ z, target, rtol=1e-9, atol=1e-12)
    weights_at_z = np.stack([rotation(z, target).T @ w for z, target, w in zip(z_e, e, weights, strict=True)])
  else:
    weights_at_z = weights
  np.testing.assert_array_equal(quantizer(z_e), e)
  np.testing.assert_allclose(gradients_of(quantizer, z_e, weights, training=False)[0], weights_at_z, rtol=1e-9)


def test_where_no_rotation_is_defined_the_gradient_is_finite():
  z = tf.constant([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
  e = tf.constant([[1.0, 0.0], [0.0, 0.0], [-2.0, 0.0], [1.0, 0.0]])
  with tf.GradientTape() as tape:
    tape.watch(z)
    z_q = with_gradient(z, e, "rotation")
  np.testing.assert_array_equal(z_q, e)
  gradient = tape.gradient(z_q, z, tf.ones_like(z)).numpy()
  assert np.isfinite(gradient).all()
  np.testing.assert_allclose(gradient[3], 1, rtol=1e-6)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_cosine_codes_are_those_of_the_greatest_cosine(decay, rng):
  quantizer = VectorQuantizer(32, 3, decay=decay, metric="cosine", revival_threshold=0)
  codebook = rng.normal(size=(32, 3)) * rng.uniform(0.1, 10, (32, 1))
  quantizer.set_codebook(codebook)
  z_e = rng.normal(size=(200, 3)) * rng.uniform(0.1, 10, (200, 1))
  codes = np.argmax(unit(z_e) @ unit(codebook).T, axis=-1)
  np.testing.assert_array_equal(quantizer.encode(z_e), codes)
  np.testing.assert_allclose(quantizer(z_e), unit(codebook)[codes], rtol=1e-5)
  np.testing.assert_allclose(quantizer.losses[0], 0.25 * np.mean((unit(z_e) - unit(codebook)[codes]) ** 2), rtol=1e-5)


def test_cosine_codebook_follows_the_directions(rng):
  quantizer = VectorQuantizer(4, 3, decay=0.9, metric="cosine", revival_threshold=0, **FLOAT64)
  codebook = quantizer.codebook.numpy()
  sums, counts = np.array(quantizer.weights[2]), np.ones(4)
  z_e = 5 * rng.normal(size=(30, 3))
  codes = quantizer.encode(z_e).numpy()
  quantizer(z_e, training=True)
  for code in range(4):
    sums[code] = 0.9 * sums[code] + 0.1 * unit(z_e)[codes == code].sum(axis=0)
    counts[code] = 0.9 + 0.1 * np.sum(codes == code)
  np.testing.assert_allclose(quantizer.codebook, unit(sums), rtol=1e-9)
  np.testing.assert_allclose(np.linalg.norm(codebook, axis=-1), 1, rtol=1e-9)


def test_the_cosine_gradient_passes_the_normalisation(rng):
  quantizer = VectorQuantizer(8, 3, metric="cosine", **FLOAT64)
  z_e, weights = rng.normal(size=(10, 3)), rng.normal(size=(10, 3))
  tangential = weights - unit(z_e) * np.sum(unit(z_e) * weights, axis=-1, keepdims=True)
  expected = tangential / np.linalg.norm(z_e, axis=-1, keepdims=True)
  np.testing.assert_allclose(gradients_of(quantizer, z_e, weights, training=False)[0], expected, rtol=1e-9)


def residual_quantizer(num_levels, **kwargs):
  levels = [VectorQuantizer(8, 3, revival_threshold=0, seed=seed, **FLOAT64) for seed in range(num_levels)]
  return ResidualQuantizer(levels, **kwargs, **FLOAT64)


def test_residual_quantisation_is_repeated_quantisation(rng):
  quantizer = residual_quantizer(4)
  alone = [VectorQuantizer(8, 3, revival_threshold=0, seed=seed, **FLOAT64) for seed in range(4)]
  z_e = rng.normal(size=(30, 3))
  quantizer.adapt(z_e)
  residual, losses = z_e, []
  for level in alone:
    level.adapt(residual)
    residual = residual - level.decode(level.encode(residual))
  for _ in range(3):
    codes = quantizer.encode(z_e).numpy()
    quantizer(z_e, training=True)
    residual, losses = z_e, []
    for number, level in enumerate(alone):
      np.testing.assert_array_equal(level.encode(residual), codes[:, number])
      residual = residual - level(residual, training=True)
      losses += level.losses
    np.testing.assert_allclose(quantizer.losses, losses, rtol=1e-6)
    for level, other in zip(quantizer.quantizers, alone, strict=True):
      np.testing.assert_allclose(level.codebook, other.codebook, rtol=1e-12)


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_the_gradient_of_a_residual_quantiser_is_that_of_one_step(gradient, rng):
  quantizer = residual_quantizer(3, gradient=gradient)
  z_e, weights = rng.normal(size=(10, 3)), rng.normal(size=(10, 3))
  e = quantizer.decode(quantizer.encode(z_e)).numpy()
  expected = weights
  if gradient == "rotation":
    expected = np.stack([rotation(z, target).T @ w for z, target, w in zip(z_e, e, weights, strict=True)])
  np.testing.assert_allclose(gradients_of(quantizer, z_e, weights, training=False)[0], expected, rtol=1e-9)


def test_the_commitment_of_every_level_pulls_the_vector(rng):
  quantizer = residual_quantizer(3)
  z_e = rng.normal(size=(10, 3))
  codes = quantizer.encode(z_e)
  errors = [z_e - quantizer.decode(codes[:, :number]) for number in (1, 2, 3)]
  loss, gradient = loss_gradient(quantizer, z_e)
  np.testing.assert_allclose(loss, 0.25 * sum(np.mean(error**2) for error in errors), rtol=1e-6)
  np.testing.assert_allclose(gradient, 0.25 * sum(2 * error / error.numpy().size for error in errors), rtol=1e-5)


def test_fewer_levels_are_a_lower_rate_and_a_greater_error(rng):
  quantizer = residual_quantizer(4)
  z_e = rng.normal(size=(500, 3))
  quantizer.adapt(z_e)
  codes = quantizer.encode(z_e)
  errors = [np.mean((quantizer.decode(codes[:, :number]) - z_e) ** 2) for number in (1, 2, 3, 4)]
  decode = tf.function(quantizer.decode, input_signature=[tf.TensorSpec([None, None], tf.int32)])
  for number in (1, 4):
    np.testing.assert_allclose(decode(codes[:, :number]), quantizer.decode(codes[:, :number]), rtol=1e-9, atol=1e-12)
  assert all(less < 0.6 * more for more, less in itertools.pairwise(errors))


@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
def test_dropout_lowers_the_rate_in_training_only(dropout, rng):
  quantizer = residual_quantizer(4, dropout=dropout)
  z_e = rng.normal(size=(2000, 2, 3))
  codes = quantizer.quantize_vectors(z_e, training=True).codes.numpy()
  used = codes >= 0
  assert (np.diff(used.astype(int), axis=-1) <= 0).all(), "a level is used only after those before it"
  np.testing.assert_array_equal(used[:, 0], used[:, 1])  # examples are dropped whole
  num_levels = used[:, 0].sum(axis=-1)
  for number in (1, 2, 3):
    assert np.mean(num_levels == number) == pytest.approx(dropout / 4, abs=0.03)
  again = quantizer.quantize_vectors(z_e, training=True).codes.numpy() >= 0
  assert (again == used).all() == (dropout == 0)
  assert (quantizer.quantize_vectors(z_e).codes.numpy() >= 0).all()


def test_dropped_levels_add_nothing_and_learn_nothing(rng):
  quantizer = residual_quantizer(3, dropout=1.0)
  z_e = rng.normal(size=(40, 3))
  before = [level.codebook.numpy() for level in quantizer.quantizers]
  z_q, codes, losses = quantizer.quantize_vectors(z_e, training=True)
  codes = codes.numpy()
  residual, counted = z_e, np.ones(40, bool)
  for number, level in enumerate(quantizer.quantizers):
    counted = codes[:, number] >= 0
    residual = residual - counted[:, np.newaxis] * before[number][np.maximum(codes[:, number], 0)]
    np.testing.assert_allclose(losses[f"commitment_{number}"], 0.25 * np.mean(residual[counted] ** 2), rtol=1e-9)
    moved = np.any(level.codebook != before[number], axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(moved), np.unique(codes[counted, number]))
  np.testing.assert_allclose(z_q, z_e - residual, rtol=1e-9, atol=1e-12)


def test_a_product_is_its_groups_side_by_side(rng):
  groups = lambda: [VectorQuantizer(8, dim, revival_threshold=0, seed=dim, **FLOAT64) for dim in (2, 3)]
  product, alone = ProductQuantizer(groups(), **FLOAT64), groups()
  z_e = rng.normal(size=(20, 5))
  for _ in range(3):
    codes = product.encode(z_e)
    z_q = product(z_e, training=True).numpy()
    parts = [z_e[:, :2], z_e[:, 2:]]
    np.testing.assert_array_equal(codes, np.stack([part.encode(z) for part, z in zip(alone, parts, strict=True)], -1))
    np.testing.assert_array_equal(
      z_q, np.concatenate([part(z, training=True) for part, z in zip(alone, parts, strict=True)], axis=-1)
    )
    np.testing.assert_allclose(product.losses, [2 / 5 * alone[0].losses[0], 3 / 5 * alone[1].losses[0]], rtol=1e-6)


def test_groups_may_be_quantisers_of_several_codes(rng):
  part = lambda seed: ResidualQuantizer([VectorQuantizer(8, 2, seed=seed + level) for level in range(3)])
  product = ProductQuantizer([part(0), part(5)])
  z_e = rng.normal(size=(20, 4)).astype(np.float32)
  product.adapt(z_e)
  assert product.code_shape == (2, 3) and product.bits == 18 and product.num_values == 8
  codes = product.encode(z_e)
  np.testing.assert_array_equal(codes[:, 1], product.quantizers[1].encode(z_e[:, 2:]))
  np.testing.assert_array_equal(product.decode(codes), product(z_e))
  assert product.usage.result()["perplexity"] > 1 and product.metrics == [product.usage]


def soft_vectors(z_e, codebook, hardness):
  """Mixtures of codebook vectors, and their weights."""
  distances = np.sum((z_e[:, np.newaxis] - codebook) ** 2, axis=-1)
  weights = np.exp(-hardness * (distances - distances.min(axis=-1, keepdims=True)))
  weights /= weights.sum(axis=-1, keepdims=True)
  return weights @ codebook, weights


def test_soft_to_hard_mixtures_and_their_gradients(rng):
  quantizer = SoftToHardQuantizer(8, 3, initial_hardness=1.5, final_hardness=24.0, annealing_steps=2, **FLOAT64)
  z_e, weights = rng.normal(size=(10, 3)), rng.normal(size=(10, 3))
  for hardness in (1.5, 6.0, 24.0, 24.0):
    np.testing.assert_allclose(quantizer.hardness, hardness)
    codebook = quantizer.codebook.numpy()
    mixture, shares = soft_vectors(z_e, codebook, hardness)
    np.testing.assert_allclose(quantizer(z_e), codebook[np.argmax(shares, axis=-1)])
    gradient_z, gradient_codebook = gradients_of(quantizer, z_e, weights)
    # d mixture / d z = 2 hardness (sum_j share_j e_j e_j^T - mixture mixture^T)
    projections = weights @ codebook.T  # of each weight vector on each code
    centred = shares * (projections - np.sum(shares * projections, axis=-1, keepdims=True))
    np.testing.assert_allclose(gradient_z, 2 * hardness * centred @ codebook, rtol=1e-8, atol=1e-12)
    differences = z_e[:, np.newaxis] - codebook
    expected = shares.T @ weights + 2 * hardness * np.sum(centred[..., np.newaxis] * differences, axis=0)
    np.testing.assert_allclose(gradient_codebook, expected, rtol=1e-8, atol=1e-12)


def test_mixtures_become_the_nearest_codebook_vectors(rng):
  quantizer = SoftToHardQuantizer(8, 3, initial_hardness=1e6, final_hardness=1e6, **FLOAT64)
  z_e = rng.normal(size=(30, 3))
  np.testing.assert_allclose(quantizer(z_e, training=True), quantizer(z_e), atol=1e-6)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: VectorQuantizer(8, 4, metric="manhattan"), "metric must be euclidean or cosine"),
    (lambda: VectorQuantizer(8, 4, gradient="none"), "gradient must be straight_through or rotation"),
    (lambda: ResidualQuantizer([]), "at least one level"),
    (lambda: ResidualQuantizer([VectorQuantizer(8, 4), VectorQuantizer(8, 3)]), "the same K and D"),
    (lambda: ResidualQuantizer([VectorQuantizer(8, 4, metric="cosine")]), "euclidean"),
    (lambda: ResidualQuantizer([VectorQuantizer(8, 4)], dropout=1.5), "dropout"),
    (lambda: ProductQuantizer([]), "the same shape"),
    (lambda: ProductQuantizer([VectorQuantizer(8, 4), ResidualQuantizer([VectorQuantizer(8, 4)])]), "the same shape"),
    (lambda: FiniteScalarQuantizer((5, 1)), "integers >= 2"),
    (lambda: FiniteScalarQuantizer((5,) * 20), "at most 16777216"),
    (lambda: LookupFreeQuantizer(0), "num_bits"),
    (lambda: LookupFreeQuantizer(4, entropy_weight=-1.0), "entropy_weight"),
    (lambda: LookupFreeQuantizer(4, temperature=0.0), "temperature"),
    (lambda: SoftToHardQuantizer(8, 4, initial_hardness=2.0, final_hardness=1.0), "final_hardness"),
    (lambda: SoftToHardQuantizer(8, 4, annealing_steps=0), "annealing_steps"),
  ],
)
def test_impossible_arguments_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()
