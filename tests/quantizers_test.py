"""What every kind of quantiser has to do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from export import onnx, tflite
from tfvq.configs import common
from tfvq.endpoints.endpoint import Endpoint, floats, integers
from tfvq.errors import UserError
from tfvq.layers import (
  FiniteScalarQuantizer,
  LookupFreeQuantizer,
  ProductQuantizer,
  Quantizer,
  ResidualQuantizer,
  SoftToHardQuantizer,
  VectorQuantizer,
  build_quantizer,
)


def make(kind, dim=4):
  """A small quantiser of each kind; `dim` is even."""
  if kind == "vector":
    return VectorQuantizer(16, dim, decay=0.9)
  if kind == "cosine":
    return VectorQuantizer(16, dim, decay=0.9, metric="cosine", gradient="rotation")
  if kind == "residual":
    return ResidualQuantizer([VectorQuantizer(8, dim, decay=0.9, seed=seed) for seed in range(3)], dropout=0.7)
  if kind == "product":
    return ProductQuantizer([VectorQuantizer(size, dim // 2, decay=None, seed=size) for size in (8, 6)])
  if kind == "finite scalar":
    return FiniteScalarQuantizer((5, 4, 3), dim)
  if kind == "lookup-free":
    return LookupFreeQuantizer(dim, diversity=0.7)
  assert kind == "soft to hard"
  return SoftToHardQuantizer(16, dim, annealing_steps=4)


KINDS = ("vector", "cosine", "residual", "product", "finite scalar", "lookup-free", "soft to hard")
every_kind = pytest.mark.parametrize("kind", KINDS)


def vectors(rng, *shape):
  return rng.normal(size=shape).astype(np.float32)


def weights_of(layer):
  return [np.array(weight) for weight in layer.weights]


def autoencoder(kind, **compile_arguments):
  """A model with a quantiser between two dense layers."""
  keras.utils.set_random_seed(3)
  dense = lambda units: keras.layers.Dense(units, kernel_initializer=keras.initializers.Orthogonal(seed=units))
  model = keras.Sequential([keras.Input((8,)), dense(4), make(kind), dense(8)])
  model.compile(keras.optimizers.SGD(0.1), "mse", **compile_arguments)
  return model


@every_kind
@pytest.mark.parametrize("leading_shape", [(), (3,), (0, 5), (2, 3, 5)])
def test_codes_tell_what_call_returns(kind, leading_shape, rng):
  quantizer = make(kind)
  z_e = vectors(rng, *leading_shape, 4)
  codes = quantizer.encode(z_e)
  assert codes.dtype == tf.int32 and codes.shape == (*leading_shape, *quantizer.code_shape)
  z_q = quantizer(z_e)
  assert z_q.dtype == tf.float32
  np.testing.assert_array_equal(quantizer.decode(codes), z_q)
  np.testing.assert_array_equal(quantizer.encode(z_e, exact=False), codes)
  np.testing.assert_array_equal(quantizer.quantize_vectors(z_e).codes, codes)
  assert quantizer(z_e, training=True).shape == z_e.shape
  assert np.isfinite(quantizer.losses).all()


@every_kind
def test_metrics_and_bits_are_those_of_the_codes(kind, rng):
  quantizer = make(kind)
  z_e = vectors(rng, 50, 4)
  quantizer(z_e)
  codes = np.reshape(quantizer.encode(z_e), (50, -1))
  sizes = np.broadcast_to(quantizer.num_values, quantizer.code_shape).reshape(-1)
  counts = [np.bincount(column, minlength=size) for column, size in zip(codes.T, sizes, strict=True)]
  entropies = [-np.sum(count[count > 0] / 50 * np.log(count[count > 0] / 50)) for count in counts]
  figures = quantizer.usage.result()
  np.testing.assert_allclose(figures["perplexity"], np.exp(np.mean(entropies)), rtol=1e-5)
  np.testing.assert_allclose(figures["codebook_usage"], np.mean(np.concatenate(counts) > 0), rtol=1e-5)
  assert quantizer.metrics == [quantizer.usage]
  np.testing.assert_allclose(quantizer.bits, sum(np.log2(sizes)))


@every_kind
def test_trains_compiled_in_a_sequential_model_and_survives_saving(kind, rng, tmp_path):
  x = vectors(rng, 64, 8)
  model = autoencoder(kind, jit_compile=True)
  history = model.fit(x, x, batch_size=32, epochs=3, verbose=0).history
  assert history["loss"][-1] < history["loss"][0]
  assert {"perplexity", "codebook_usage", "nonfinite_vectors"} <= history.keys()
  model.save(tmp_path / "model.keras")
  loaded = keras.saving.load_model(tmp_path / "model.keras")
  z_e = model.layers[0](x)
  np.testing.assert_array_equal(loaded.layers[1].encode(z_e), model.layers[1].encode(z_e))
  np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
  assert loaded.layers[1].get_config() == model.layers[1].get_config()
  for a, b in zip(weights_of(loaded.layers[1]), weights_of(model.layers[1]), strict=True):
    np.testing.assert_array_equal(a, b)


@every_kind
def test_two_replicas_train_a_model_as_one_does(kind, rng, two_replicas):
  x = vectors(rng, 48, 8)

  def train(strategy):
    with strategy.scope():
      model = autoencoder(kind, jit_compile=False)
    history = model.fit(x, x, batch_size=24, epochs=2, shuffle=False, verbose=0).history
    return history, weights_of(model)

  (expected, expected_weights), (got, weights) = train(tf.distribute.get_strategy()), train(two_replicas)
  assert got.keys() == expected.keys()
  for name in expected:
    np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
  for weight, other in zip(weights, expected_weights, strict=True):
    np.testing.assert_allclose(weight, other, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["vector", "residual", "lookup-free"])
def test_losses_are_those_of_all_replicas_however_many_vectors_each_has(kind, rng, two_replicas):
  z_e, mask = vectors(rng, 8, 5, 4), rng.random((8, 5)) < np.repeat([0.2, 0.9], 4)[:, np.newaxis]

  def gradient_of_losses(quantizer, z_e, mask):
    with tf.GradientTape() as tape:
      tape.watch(z_e)
      loss = tf.add_n(list(quantizer.quantize_vectors(z_e, mask, training=True).losses.values()))
    return loss, tape.gradient(loss, z_e)

  expected, expected_gradient = gradient_of_losses(make(kind), tf.constant(z_e), tf.constant(mask))
  with two_replicas.scope():
    quantizer = make(kind)

  def part(values):
    return two_replicas.experimental_distribute_values_from_function(
      lambda context: tf.constant(np.split(values, 2)[context.replica_id_in_sync_group])
    )

  run = tf.function(lambda z_e, mask: two_replicas.run(gradient_of_losses, (quantizer, z_e, mask)))
  losses, gradients = (two_replicas.experimental_local_results(values) for values in run(part(z_e), part(mask)))
  np.testing.assert_allclose(np.mean(losses), expected, rtol=1e-5)
  np.testing.assert_allclose(np.concatenate(gradients) / 2, expected_gradient, rtol=1e-4, atol=1e-7)


@every_kind
@pytest.mark.parametrize("left_out", ["padded", "not finite"])
def test_vectors_left_out_change_nothing(kind, left_out, rng):
  z_e = vectors(rng, 6, 5, 4)
  longer = np.insert(z_e, [1, 3], 7 if left_out == "padded" else np.array([[np.nan], [np.inf]]), axis=1)
  mask = np.insert(np.ones((6, 5), bool), [1, 3], False, axis=1) if left_out == "padded" else None
  plain, other, gradients = make(kind), make(kind), []
  for quantizer, batch, batch_mask in ((plain, z_e, None), (other, longer, mask)):
    batch = tf.constant(batch)
    for _ in range(3):
      with tf.GradientTape() as tape:
        tape.watch(batch)
        z_q = quantizer(batch, training=True, mask=batch_mask)
        loss = tf.reduce_sum(z_q) + sum(quantizer.losses)
    gradients.append(tape.gradient(loss, batch).numpy())
  np.testing.assert_allclose(other.losses, plain.losses, rtol=1e-5)
  # Sums of another length may be rounded differently, in parts of their largest terms.
  atol = 1e-5 * np.abs(gradients[0]).max()
  np.testing.assert_allclose(np.delete(gradients[1], [1, 4], axis=1), gradients[0], rtol=1e-4, atol=atol)
  for weight, expected in zip(weights_of(other), weights_of(plain), strict=True):
    np.testing.assert_allclose(weight, expected, rtol=1e-5)
  figures, expected = other.usage.result(), plain.usage.result()
  np.testing.assert_allclose(figures["perplexity"], expected["perplexity"], rtol=1e-5)
  assert figures["nonfinite_vectors"] == (36 if left_out == "not finite" else 0)
  if left_out == "not finite":
    assert np.isfinite(z_q).all()
    np.testing.assert_array_equal(gradients[1][:, [1, 4]], 0)
    codes = other.encode(longer).numpy()
    assert (codes[:, [1, 4]] == -1).all() and (np.delete(codes, [1, 4], axis=1) >= 0).all()
    first = other.decode(np.zeros(other.code_shape, np.int32))
    np.testing.assert_array_equal(other(longer)[:, 1], np.broadcast_to(first, (6, 4)))


@every_kind
@pytest.mark.parametrize(("training", "trainable"), [(False, True), (True, False)])
def test_nothing_moves_when_not_training(kind, training, trainable, rng):
  quantizer = make(kind)
  quantizer.trainable = trainable
  before = weights_of(quantizer)
  z_e = vectors(rng, 50, 4)
  np.testing.assert_array_equal(quantizer(z_e, training=training), quantizer.decode(quantizer.encode(z_e)))
  for weight, expected in zip(weights_of(quantizer), before, strict=True):
    np.testing.assert_array_equal(weight, expected)


@every_kind
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_computes_in_full_precision_whatever_the_policy(kind, policy, rng):
  keras.config.set_dtype_policy(policy)
  model = autoencoder(kind, run_eagerly=True)
  x = rng.normal(size=(32, 8))
  assert np.isfinite(model.fit(x, x, epochs=2, verbose=0).history["loss"]).all()
  quantizer = model.layers[1]
  own = "float64" if policy == "float64" else "float32"
  assert {weight.dtype for weight in quantizer.weights} <= {own, "int32"}
  z_e = tf.cast(x[:, :4], policy.removeprefix("mixed_"))
  z_q = quantizer(z_e)
  assert z_q.dtype == z_e.dtype
  assert quantizer.decode(quantizer.encode(z_e)).dtype == own
  np.testing.assert_array_equal(quantizer.encode(z_e), quantizer.encode(tf.cast(z_e, own)))


@every_kind
def test_runs_in_tflite_and_onnx_with_equal_codes(kind, rng):
  quantizer = make(kind)
  z_e = vectors(rng, 1, 40, 4)
  quantizer.adapt(z_e)
  codes = quantizer.encode(z_e).numpy()
  encoder = Endpoint(
    "encoder", lambda z_e: {"codes": quantizer.encode(z_e, exact=False)}, {"z_e": floats(*z_e.shape)}, quantizer, None
  )
  decoder = Endpoint(
    "decoder", lambda codes: {"z_q": quantizer.decode(codes)}, {"codes": integers(*codes.shape)}, quantizer, None
  )
  for run in (lambda endpoint: tflite.Runner(tflite.write(endpoint, "none")), lambda x: onnx.Runner(onnx.convert(x))):
    given = run(encoder)(z_e=z_e)["codes"]
    assert given.dtype == np.int32
    np.testing.assert_array_equal(given, codes)
    np.testing.assert_allclose(run(decoder)(codes=codes)["z_q"], quantizer.decode(codes), atol=1e-6)


@every_kind
def test_the_margin_is_the_distance_at_which_a_code_changes(kind, rng):
  quantizer = make(kind, dim=2)
  z_e = vectors(rng, 60, 2)
  quantizer.adapt(z_e)
  margin = quantizer.margin(z_e)
  assert margin.shape == (60,) and margin.dtype == np.float64
  wide = margin > 1e-3
  assert wide.sum() > 40
  z_e, margin = z_e[wide], margin[wide]
  angles = 2 * np.pi * np.arange(128) / 128
  directions = np.stack([np.cos(angles), np.sin(angles)], axis=-1)[:, np.newaxis]

  def is_changed(factor):
    codes = quantizer.encode((z_e + factor * margin[:, np.newaxis] * directions).astype(np.float32)).numpy()
    return np.reshape(codes != quantizer.encode(z_e).numpy(), (128, len(z_e), -1)).any(axis=-1)

  assert not is_changed(0.99).any()
  assert is_changed(1.02).any(axis=0).all()


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lookup-free"])
def test_adapt_brings_the_quantiser_to_the_data(kind, rng):
  quantizer = make(kind)
  z_e = 3 + vectors(rng, 200, 4) @ vectors(rng, 4, 4)
  target = z_e / np.linalg.norm(z_e, axis=-1, keepdims=True) if kind == "cosine" else z_e
  error = lambda: np.mean(np.square(quantizer.decode(quantizer.encode(z_e)) - target))
  before = error()
  quantizer.adapt(np.insert(z_e, 3, np.nan, axis=0))
  assert error() < 0.3 * before
  assert all(np.isfinite(weight).all() for weight in weights_of(quantizer))


@every_kind
def test_what_cannot_be_is_refused(kind, rng):
  quantizer = make(kind)
  codes = quantizer.encode(vectors(rng, 3, 4)).numpy()
  with pytest.raises(ValueError, match="embedding_dim is 4"):
    quantizer(vectors(rng, 3, 5))
  highest = np.max(quantizer.num_values)
  for wrong in (-1, highest):
    with pytest.raises(ValueError, match="must be in 0"):
      quantizer.decode(np.where(np.arange(codes.size).reshape(codes.shape) == 0, wrong, codes))
  if quantizer.code_shape:
    with pytest.raises(ValueError, match=r"codes of a vector must have|must have 1 to \d codes"):
      quantizer.decode(np.concatenate([codes, codes], axis=-1))


@pytest.mark.parametrize("dim", [4, 12])
@pytest.mark.parametrize(
  ("kind", "layer", "bits"),
  [
    ("vector", VectorQuantizer, 9),
    ("residual", ResidualQuantizer, 4 * 9),
    ("product", ProductQuantizer, 4 * 9),
    ("finite_scalar", FiniteScalarQuantizer, np.log2(1000)),
    ("lookup_free", LookupFreeQuantizer, 9),
    ("soft_to_hard", SoftToHardQuantizer, 9),
  ],
)
def test_settings_make_each_kind(kind, layer, bits, dim):
  quantizer = build_quantizer(common.quantizer(kind=kind), dim, seed=1)
  assert type(quantizer) is layer and isinstance(quantizer, Quantizer)
  np.testing.assert_allclose(quantizer.bits, bits)
  assert quantizer.embedding_dim == dim


def test_settings_that_cannot_be_are_refused():
  with pytest.raises(UserError, match="'nearest': choose one of vector, residual, product, finite_scalar"):
    build_quantizer(common.quantizer(kind="nearest"), 4)
  with pytest.raises(UserError, match="num_groups=4"):
    build_quantizer(common.quantizer(kind="product"), 6)
