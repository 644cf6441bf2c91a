import pathlib
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvq.layers import VectorQuantizer

ROOT = pathlib.Path(__file__).parent.parent


def model_of_two_quantizers(decay):
  """A model whose layers add losses before, between and after its quantisers."""
  keras.utils.set_random_seed(1)
  dense = lambda units, name: keras.layers.Dense(units, name=name, activity_regularizer=MeanSquare())
  model = keras.Sequential(
    [
      keras.Input((8,)),
      dense(4, "first"),
      VectorQuantizer(16, 4, decay=decay, name="top"),
      dense(5, "second"),
      VectorQuantizer(8, 5, decay=decay, name="bottom"),
      dense(8, "third"),
    ]
  )
  model.compile(keras.optimizers.SGD(0.1), loss="mse", jit_compile=False)
  return model


@keras.saving.register_keras_serializable("tests")
class MeanSquare(keras.regularizers.Regularizer):
  def __call__(self, x):
    return tf.cast(tf.shape(x)[0], x.dtype) * tf.reduce_mean(tf.square(x))  # Keras divides by the batch size

  def get_config(self):
    return {}


def trained_on(strategy, decay, x):
  """Metrics and weights after two training steps of a model of two quantisers."""
  with strategy.scope():
    model = model_of_two_quantizers(decay)
  history = model.fit(x, x, batch_size=len(x) // 2, shuffle=False, verbose=0).history
  evaluated = model.evaluate(x, x, batch_size=len(x), verbose=0, return_dict=True)
  return {**history, **evaluated}, {weight.path.split("/", 1)[1]: np.array(weight) for weight in model.weights}


def assert_equal_training(got, expected):
  for figures, other in zip(got, expected, strict=True):
    assert figures.keys() == other.keys()
    for name in figures:
      np.testing.assert_allclose(figures[name], other[name], rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("decay", [None, 0.9])
def test_two_replicas_train_a_model_as_one_does(decay, rng, two_replicas):
  x = rng.normal(size=(48, 8)).astype(np.float32)
  one = trained_on(tf.distribute.get_strategy(), decay, x)
  assert {"top_perplexity", "bottom_perplexity", "top_codebook_usage", "bottom_nonfinite_vectors"} <= one[0].keys()
  assert_equal_training(trained_on(two_replicas, decay, x), one)


_THREE_REPLICAS = """if True:
  import pickle, sys
  import numpy as np
  import tensorflow as tf
  devices = [tf.config.LogicalDeviceConfiguration()] * 3
  tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], devices)
  from tests.quantizer_replicas_test import trained_on
  strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1", "CPU:2"])
  x = np.random.default_rng(0).normal(size=(48, 8)).astype(np.float32)
  pickle.dump(trained_on(strategy, 0.9, x), open(sys.argv[1], "wb"))
"""


def test_three_replicas_train_a_model_as_one_does(rng, tmp_path):
  """Runs in its own process, with three devices."""
  subprocess.run([sys.executable, "-c", _THREE_REPLICAS, tmp_path / "trained"], cwd=ROOT, check=True)
  x = rng.normal(size=(48, 8)).astype(np.float32)
  expected = trained_on(tf.distribute.get_strategy(), 0.9, x)
  assert_equal_training(pickle.loads((tmp_path / "trained").read_bytes()), expected)


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
