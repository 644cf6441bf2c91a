import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvq.layers import CodebookUsage, VectorQuantizer


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


def test_a_code_unused_for_ages_stays_and_stays_finite():
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
  np.testing.assert_allclose(quantizer.decode(codes), quantizer(z_e), rtol=1e-6)
  np.testing.assert_array_equal(quantizer.encode(quantizer.decode(codes)), codes)


def test_adapt_brings_the_codebook_to_the_data(rng):
  quantizer = VectorQuantizer(32, 3)
  z_e = rng.normal(loc=20.0, size=(4, 100, 3)).astype(np.float32)
  quantizer.adapt(z_e)
  assert len(np.unique(quantizer.encode(z_e))) > 28
  quantizer(z_e, training=True)  # the moving statistics followed: one step does not throw the codebook away
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


@pytest.mark.parametrize("revival_threshold", [0, 0.5])
def test_two_replicas_learn_what_one_learns(revival_threshold, rng, two_replicas):
  batches = rng.normal(size=(6, 32, 3)).astype(np.float32)
  codebook = rng.normal(size=(16, 3)).astype(np.float32)
  one = VectorQuantizer(16, 3, decay=0.7, revival_threshold=revival_threshold)
  one.set_codebook(codebook)
  for batch in batches:
    one(batch, training=True)

  with two_replicas.scope():
    two = VectorQuantizer(16, 3, decay=0.7, revival_threshold=revival_threshold)
    two.set_codebook(codebook)

  @tf.function
  def step(batch):
    two_replicas.run(lambda z: two(z, training=True), args=(batch,))

  dataset = tf.data.Dataset.from_tensor_slices(batches).unbatch().batch(32)
  for batch in two_replicas.experimental_distribute_dataset(dataset):
    step(batch)
  np.testing.assert_allclose(two.codebook, one.codebook, rtol=1e-4, atol=1e-6)
  assert two.usage.result()["perplexity"].numpy() == pytest.approx(one.usage.result()["perplexity"].numpy(), rel=1e-5)


def test_perplexity_is_that_of_the_window_whatever_the_batch_size(rng):
  codes = np.concatenate([rng.integers(0, 2, 1000), rng.integers(0, 8, 2000)])
  results = []
  for batch_size in (1, 8, 250):
    usage = CodebookUsage(8, window=500)
    for start in range(0, len(codes), batch_size):
      usage.update_state(np.bincount(codes[start : start + batch_size], minlength=8).astype(np.float32))
    results.append(float(usage.result()["perplexity"]))
    assert usage.result()["codebook_usage"] == 1
  np.testing.assert_allclose(results, 8, rtol=0.02)
  np.testing.assert_allclose(results, results[0], rtol=0.005)


def test_perplexity_by_hand():
  usage = CodebookUsage(4)
  assert usage.result()["perplexity"] == 0
  usage.update_state([3.0, 3.0, 0.0, 0.0])
  np.testing.assert_allclose(usage.result()["perplexity"], 2, rtol=1e-6)
  usage.update_state([0.0, 0.0, 3.0, 3.0])
  np.testing.assert_allclose(usage.result()["perplexity"], 4, rtol=1e-6)
  usage.reset_state()  # the window is its own: a log that begins a new row does not shorten it
  np.testing.assert_allclose(usage.result()["perplexity"], 4, rtol=1e-6)


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
