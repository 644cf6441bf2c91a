import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf

from tfvq.layers import VectorQuantizer


def moving_average_recursion(codebook, batches, decay):
  """Appendix A.1 in float64."""
  counts = np.ones(len(codebook))
  sums = codebook.astype(np.float64)
  codebook = codebook.astype(np.float64)
  for batch in batches:
    distances = np.sum((batch[:, np.newaxis].astype(np.float64) - codebook) ** 2, axis=-1)
    codes = np.argmin(distances, axis=-1)
    batch_counts = np.bincount(codes, minlength=len(codebook))
    batch_sums = np.zeros_like(sums)
    np.add.at(batch_sums, codes, batch)
    counts = decay * counts + (1 - decay) * batch_counts
    sums = decay * sums + (1 - decay) * batch_sums
    codebook = sums / counts[:, np.newaxis]
  return codebook


@pytest.mark.parametrize("num_steps", [1, 20])
def test_codebook_follows_the_moving_averages(num_steps, rng):
  quantizer = VectorQuantizer(6, 3, decay=0.9, revival_threshold=0)
  codebook = rng.normal(size=(6, 3)).astype(np.float32)
  codebook[5] = 100  # never used
  quantizer.set_codebook(codebook)
  batches = rng.normal(size=(num_steps, 40, 3)).astype(np.float32)
  for batch in batches:
    quantizer(batch.reshape(4, 10, 3), training=True)
  np.testing.assert_allclose(quantizer.codebook, moving_average_recursion(codebook, batches, 0.9), rtol=1e-4)
  np.testing.assert_allclose(quantizer.codebook[5], 100, rtol=1e-6)


def test_a_code_that_is_not_used_for_long_keeps_its_vector():
  quantizer = VectorQuantizer(2, 1, decay=0.01, revival_threshold=0)
  quantizer.set_codebook([[0.0], [9.0]])
  for _ in range(60):
    quantizer(np.zeros([5, 1], np.float32), training=True)
  np.testing.assert_allclose(quantizer.codebook, [[0.0], [9.0]], rtol=1e-5)


@pytest.mark.parametrize(("training", "trainable"), [(False, True), (True, False)])
def test_nothing_moves_when_not_training(training, trainable, rng):
  quantizer = VectorQuantizer(6, 3)
  quantizer.trainable = trainable
  before = [weight.numpy() for weight in quantizer.weights]
  quantizer(rng.normal(size=(50, 3)).astype(np.float32), training=training)
  for weight, value in zip(quantizer.weights, before, strict=True):
    np.testing.assert_array_equal(weight, value)
  assert len(quantizer.losses) == 1


def test_losses_are_those_of_eq_3(rng):
  z_e = rng.normal(size=(5, 4)).astype(np.float32)
  for decay, factor in ((0.99, 0.5), (None, 1.5)):
    quantizer = VectorQuantizer(8, 4, commitment_cost=0.5, decay=decay)
    error = np.mean((z_e - quantizer.codebook.numpy()[quantizer.encode(z_e).numpy()]) ** 2)
    quantizer(z_e)
    np.testing.assert_allclose(sum(quantizer.losses), factor * error, rtol=1e-5)


def test_codebook_loss_trains_the_codebook_by_gradient(rng):
  quantizer = VectorQuantizer(8, 4, decay=None)
  assert [weight.path.split("/")[-1] for weight in quantizer.trainable_weights] == ["codebook"]
  x = rng.normal(loc=2.0, size=(64, 4)).astype(np.float32)
  model = keras.Sequential([quantizer])
  model.compile(keras.optimizers.Adam(0.1), loss=lambda y, y_pred: 0.0 * tf.reduce_sum(y_pred))
  before = model.evaluate(x, x, verbose=0, return_dict=True)["loss"]
  model.fit(x, x, epochs=20, verbose=0)
  assert model.evaluate(x, x, verbose=0, return_dict=True)["loss"] < 0.5 * before


def test_dead_codes_come_back_to_the_data(rng):
  quantizer = VectorQuantizer(16, 2, decay=0.5, revival_threshold=0.1)
  codebook = np.full((16, 2), 50.0, np.float32)
  codebook[0] = 0
  quantizer.set_codebook(codebook)
  data = rng.normal(size=(400, 2)).astype(np.float32)
  for _ in range(30):
    quantizer(data, training=True)
  assert len(np.unique(quantizer.encode(data))) == 16
  assert np.abs(quantizer.codebook).max() < 5


def test_a_revived_code_is_a_vector_of_the_batch_that_is_not_padded(rng):
  quantizer = VectorQuantizer(64, 2, decay=0.5, revival_threshold=0.1)
  codebook = np.full((64, 2), 50.0, np.float32)
  codebook[0] = 0
  quantizer.set_codebook(codebook)
  data = rng.normal(size=(4, 10, 2)).astype(np.float32)
  mask = np.arange(10) < np.array([[3], [0], [10], [1]])
  for _ in range(20):
    before = quantizer.codebook.numpy()
    quantizer(data, training=True, mask=mask)
    if np.abs(quantizer.codebook - before).max() > 10:
      break
  revived = quantizer.codebook.numpy()[1:]
  valid = data[mask]
  assert len(revived) > 10
  assert all(np.abs(valid - vector).sum(axis=-1).min() < 1e-5 for vector in revived)


def test_padding_changes_nothing_but_the_padding(rng):
  z_e = rng.normal(size=(30, 3)).astype(np.float32)
  padded = np.concatenate([z_e, 7 * np.ones([10, 3], np.float32)])
  plain, masked = (VectorQuantizer(6, 3, revival_threshold=0) for _ in range(2))
  for _ in range(3):
    plain(z_e, training=True)
    masked(padded, training=True, mask=np.arange(40) < 30)
  np.testing.assert_allclose(masked.codebook, plain.codebook, rtol=1e-6)
  np.testing.assert_allclose(sum(masked.losses), sum(plain.losses), rtol=1e-5)
  assert masked.usage.result()["perplexity"] == plain.usage.result()["perplexity"]


def test_an_empty_batch_is_harmless():
  quantizer = VectorQuantizer(6, 3)
  before = quantizer.codebook.numpy()
  z_q = quantizer(np.zeros([0, 5, 3], np.float32), training=True)
  assert z_q.shape == (0, 5, 3)
  assert sum(quantizer.losses) == 0
  np.testing.assert_allclose(quantizer.codebook, before, rtol=1e-6)


def test_unknown_batch_size_in_a_graph(rng):
  quantizer = VectorQuantizer(6, 3)
  call = tf.function(lambda z: quantizer(z, training=True), input_signature=[tf.TensorSpec([None, None, 3])])
  for shape in ((2, 5, 3), (0, 5, 3), (7, 1, 3)):
    assert call(rng.normal(size=shape).astype(np.float32)).shape == shape


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "float16"])
def test_low_precision_policies_keep_the_statistics_in_float32(policy, rng):
  quantizer = VectorQuantizer(32, 4, dtype=policy)
  assert {weight.dtype for weight in quantizer.weights} == {"float32", "int32"}
  z_e = tf.cast(rng.normal(size=(100, 4)), policy.removeprefix("mixed_"))
  reference = VectorQuantizer(32, 4)
  for _ in range(5):
    z_q = quantizer(z_e, training=True)
    reference(tf.cast(z_e, tf.float32), training=True)
  assert z_q.dtype == z_e.dtype
  np.testing.assert_allclose(quantizer.codebook, reference.codebook, rtol=1e-6)


def test_encode_and_decode_are_what_call_does(rng):
  quantizer = VectorQuantizer(12, 3)
  z_e = rng.normal(size=(2, 4, 5, 3)).astype(np.float32)
  codes = quantizer.encode(z_e)
  assert codes.dtype == tf.int32 and codes.shape == (2, 4, 5)
  np.testing.assert_array_equal(quantizer.decode(codes), quantizer(z_e))
  np.testing.assert_array_equal(quantizer.encode(quantizer.decode(codes)), codes)


def test_adapt_brings_the_codebook_to_the_data(rng):
  quantizer = VectorQuantizer(32, 3)
  z_e = rng.normal(loc=20.0, size=(4, 100, 3)).astype(np.float32)
  quantizer.adapt(z_e)
  assert len(np.unique(quantizer.encode(z_e))) > 28
  quantizer(z_e, training=True)  # the moving averages were set too, so that one step changes the codebook little
  assert np.abs(quantizer.codebook - 20).max() < 6


def test_saved_and_loaded_in_a_sequential_model(tmp_path, rng):
  x = rng.normal(size=(64, 5)).astype(np.float32)
  model = keras.Sequential([keras.layers.Dense(4), VectorQuantizer(8, 4, decay=0.9), keras.layers.Dense(5)])
  model.compile("adam", "mse")
  history = model.fit(x, x, epochs=2, verbose=0).history
  assert {"perplexity", "codebook_usage", "loss"} <= set(history)
  model.save(tmp_path / "model.keras")
  loaded = keras.saving.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
  for a, b in zip(model.layers[1].weights, loaded.layers[1].weights, strict=True):
    np.testing.assert_array_equal(a, b)
  assert loaded.layers[1].get_config() == model.layers[1].get_config()


def holed(x):
  """The same vectors with one of NaN and one of infinity among them."""
  return np.insert(x, [3, 17], [[np.nan] * x.shape[-1], [np.inf] * x.shape[-1]], axis=0)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("revival_threshold", [0, 0.5])
@pytest.mark.parametrize("decay", [None, 0.7])
def test_vectors_that_are_not_finite_do_not_affect_training(decay, revival_threshold, jit_compile, rng):
  x = rng.normal(size=(64, 4)).astype(np.float32)
  clean, other = (VectorQuantizer(16, 4, decay=decay, revival_threshold=revival_threshold) for _ in range(2))
  call = lambda quantizer: tf.function(
    lambda z: (quantizer(z, training=True), quantizer.losses), jit_compile=jit_compile
  )
  call_clean, call_other = call(clean), call(other)
  for _ in range(5):
    z_q, losses = call_clean(x)
    z_q_other, losses_other = call_other(holed(x))
  np.testing.assert_allclose(other.codebook, clean.codebook, rtol=1e-5)
  np.testing.assert_allclose(losses_other, losses, rtol=1e-5)
  np.testing.assert_allclose(np.delete(z_q_other, [3, 18], axis=0), z_q, rtol=1e-5)
  assert other.usage.result()["nonfinite_vectors"] == 10 and clean.usage.result()["nonfinite_vectors"] == 0
  np.testing.assert_allclose(other.usage.result()["perplexity"], clean.usage.result()["perplexity"], rtol=1e-6)


def test_padding_may_be_anything(rng):
  x = rng.normal(size=(30, 4)).astype(np.float32)
  plain, masked = (VectorQuantizer(8, 4, revival_threshold=0.5) for _ in range(2))
  mask = np.insert(np.ones(30, bool), [3, 17], False)
  plain(x, training=True)
  masked(holed(x), training=True, mask=mask)
  np.testing.assert_allclose(masked.codebook, plain.codebook, rtol=1e-6)
  np.testing.assert_allclose(masked.losses, plain.losses, rtol=1e-5)
  assert masked.usage.result()["nonfinite_vectors"] == 0


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_code_that_is_not_finite_is_revived(jit_compile, rng):
  quantizer = VectorQuantizer(40, 2, decay=0.5, revival_threshold=0.1)
  codebook = rng.normal(size=(40, 2)).astype(np.float32)
  codebook[11] = np.nan
  quantizer.set_codebook(codebook)
  call = tf.function(lambda z: quantizer(z, training=True), jit_compile=jit_compile)
  for _ in range(20):
    z_q = call(rng.normal(size=(100, 2)).astype(np.float32))
  assert np.isfinite(quantizer.codebook).all() and np.isfinite(z_q).all()


def test_adapt_leaves_out_what_is_not_finite(rng):
  x = rng.normal(size=(100, 4)).astype(np.float32)
  clean, other = VectorQuantizer(8, 4), VectorQuantizer(8, 4)
  clean.adapt(x)
  other.adapt(holed(x))
  np.testing.assert_array_equal(other.codebook, clean.codebook)


def test_in_mixed_float16_one_bad_vector_does_not_end_training(rng):
  keras.config.set_dtype_policy("mixed_float16")
  model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), VectorQuantizer(16, 4), keras.layers.Dense(4)])
  model.compile(keras.optimizers.Adam(1e-3), "mse", jit_compile=False)
  x = rng.normal(size=(64, 4)).astype(np.float32)
  model.fit(holed(x), np.nan_to_num(holed(x), posinf=0), batch_size=66, verbose=0)
  model.fit(x, x, epochs=3, verbose=0)
  assert all(np.isfinite(np.array(weight, np.float32)).all() for weight in model.weights)
  assert np.isfinite(model.predict(x, verbose=0)).all()


@pytest.mark.parametrize("floatx", ["float32", "float64"])
@pytest.mark.parametrize("policy", ["float32", "float64", "mixed_bfloat16", "mixed_float16", "bfloat16", "float16"])
def test_every_policy_trains_saves_and_loads(policy, floatx, rng, tmp_path):
  keras.config.set_floatx(floatx)
  keras.config.set_dtype_policy(policy)
  try:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), VectorQuantizer(16, 4), keras.layers.Dense(4)])
    model.compile("sgd", "mse")
    x = rng.normal(size=(32, 4))
    assert np.isfinite(model.fit(x, x, verbose=0).history["loss"]).all()
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    assert loaded.layers[1].codebook.dtype == ("float64" if policy == "float64" else "float32")
  finally:
    keras.config.set_floatx("float32")


@pytest.mark.parametrize("mask_rank", [1, 2, 3])
def test_a_mask_may_lack_the_last_dimensions(mask_rank, rng):
  z_e = rng.normal(size=(4, 6, 2, 3)).astype(np.float32)
  mask = rng.random((4, 6, 2)[:mask_rank]) < 0.6
  short, full = VectorQuantizer(8, 3), VectorQuantizer(8, 3)
  whole_mask = np.broadcast_to(mask.reshape(*mask.shape, *[1] * (3 - mask_rank)), (4, 6, 2))
  short(z_e, training=True, mask=mask)
  full(z_e, training=True, mask=whole_mask)
  np.testing.assert_array_equal(short.codebook, full.codebook)
  np.testing.assert_array_equal(short.losses, full.losses)


@pytest.mark.parametrize("codes", [[0, 16], [-1, 3]])
def test_codes_out_of_range_are_refused(codes):
  with pytest.raises(ValueError, match=r"must be in 0\.\.15, but they are in"):
    VectorQuantizer(16, 4).decode(codes)


@pytest.mark.parametrize("num_embeddings", [16, 3000])
def test_a_plain_model_runs_in_onnx_with_any_batch_size(num_embeddings, rng, tmp_path):
  model = keras.Sequential(
    [
      keras.Input((8, 8, 1)),
      keras.layers.Conv2D(4, 2, 2),
      VectorQuantizer(num_embeddings, 4),
      keras.layers.Conv2DTranspose(1, 2, 2),
    ]
  )
  x = rng.normal(size=(5, 8, 8, 1)).astype(np.float32)
  expected = model.predict(x, verbose=0)
  model.export(tmp_path / "model.onnx", format="onnx", verbose=False)
  session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
  for size in (0, 1, 5):
    (given,) = session.run(None, {session.get_inputs()[0].name: x[:size]})
    np.testing.assert_allclose(given, expected[:size], atol=1e-5)


@pytest.mark.parametrize(
  "arguments",
  [
    {"num_embeddings": 0},
    {"embedding_dim": 0},
    {"commitment_cost": -1.0},
    {"decay": 1.0},
    {"decay": 0.0},
    {"revival_threshold": 1.0},
  ],
)
def test_impossible_arguments_are_refused(arguments):
  with pytest.raises(ValueError, match=next(iter(arguments))):
    VectorQuantizer(**{"num_embeddings": 8, "embedding_dim": 4, **arguments})


def test_wrong_dimension_is_refused():
  with pytest.raises(ValueError, match="embedding_dim is 4"):
    keras.Sequential([keras.Input((7,)), VectorQuantizer(8, 4)])
