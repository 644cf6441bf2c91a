"""Every public layer and model under every dtype policy of Keras: built, called, trained, saved and loaded."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import replicas_test
from tests.replicas_test import batches, images
from tfvq import layers
from tfvq.training.muon import ConvMuon

POLICIES = ("float32", "float64", "mixed_bfloat16", "mixed_float16", "bfloat16", "float16")

# Logits of a million would not fit float16.
MODELS = {**replicas_test.MODELS, "vimco": (replicas_test.vimco, images)}

LAYERS = {
  "AudioValues": (lambda: layers.AudioValues(4), lambda: [np.zeros([2, 64])]),
  "CategoricalHead": (lambda: layers.CategoricalHead(6, 2), lambda: [np.zeros([2, 8]), np.zeros([2, 2], np.int32)]),
  "Dense": (lambda: layers.Dense(3), lambda: [np.zeros([2, 8])]),
  "DilatedBlock": (lambda: layers.DilatedBlock(4, 2), lambda: [(np.zeros([12, 4]), np.zeros([1, 1, 1, 8]))]),
  "GatedBlock": (
    lambda: layers.GatedBlock(4, 3),
    lambda: [(np.zeros([2, 3, 3, 4]), np.zeros([2, 3, 3, 4]), np.zeros([2, 1, 1, 5]))],
  ),
  "HorizontalConv2D": (lambda: layers.HorizontalConv2D(4, 3), lambda: [np.zeros([2, 3, 3, 4])]),
  "LogMel": (lambda: layers.LogMel(), lambda: [np.zeros([2, 640])]),
  "LogisticMixtureHead": (lambda: layers.LogisticMixtureHead(256, 2), lambda: [np.zeros([2, 8])]),
  "FiniteScalarQuantizer": (lambda: layers.FiniteScalarQuantizer((4, 4), 4), lambda: [np.zeros([2, 3, 4])]),
  "LookupFreeQuantizer": (lambda: layers.LookupFreeQuantizer(4, 4), lambda: [np.zeros([2, 3, 4])]),
  "ProductQuantizer": (
    lambda: layers.ProductQuantizer([layers.VectorQuantizer(8, 2), layers.VectorQuantizer(8, 2)]),
    lambda: [np.zeros([2, 3, 4])],
  ),
  "ResidualQuantizer": (
    lambda: layers.ResidualQuantizer([layers.VectorQuantizer(8, 4), layers.VectorQuantizer(8, 4)]),
    lambda: [np.zeros([2, 3, 4])],
  ),
  "SoftToHardQuantizer": (lambda: layers.SoftToHardQuantizer(8, 4), lambda: [np.zeros([2, 3, 4])]),
  "ResidualBlock": (lambda: layers.ResidualBlock(4), lambda: [np.zeros([2, 3, 3, 4])]),
  "VectorQuantizer": (lambda: layers.VectorQuantizer(8, 4), lambda: [np.zeros([2, 3, 4])]),
  "VerticalConv2D": (lambda: layers.VerticalConv2D(4, 3), lambda: [np.zeros([2, 3, 3, 4])]),
  "VoicePerturbation": (lambda: layers.VoicePerturbation(), lambda: [np.zeros([2, 5, 80])]),
}
ARGUMENTS = {
  "DilatedBlock": {"batch_size": 2},
  **dict.fromkeys((name for name in LAYERS if name.endswith("Quantizer")), {"training": True}),
  "VoicePerturbation": {"training": True},
}


@pytest.fixture(params=(*POLICIES, "floatx"))
def policy(request):
  """Each dtype policy in turn, and float64 by `keras.config.set_floatx`."""
  if request.param == "floatx":
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
  else:
    keras.config.set_dtype_policy(request.param)
  yield request.param
  keras.config.set_floatx("float32")


def test_every_public_layer_is_here():
  others = {"CodebookUsage", "Quantizer", "build_quantizer"}  # a metric, a base class, a function
  assert set(LAYERS) == set(layers.__all__) - others


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, policy):
  build, inputs = LAYERS[name]
  layer = build()
  inputs = [
    tf.nest.map_structure(lambda x: x if x.dtype == np.int32 else tf.cast(x, layer.compute_dtype), value)
    for value in inputs()
  ]
  outputs = tf.nest.flatten(layer(*inputs, **ARGUMENTS.get(name, {})))
  assert all(np.isfinite(np.array(output, np.float64)).all() for output in outputs)
  again = type(layer).from_config(layer.get_config())
  assert again.compute_dtype == layer.compute_dtype


FAST = ("float64", "mixed_float16")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in (*POLICIES, "floatx") if name not in FAST]


@pytest.mark.parametrize("policy", [*FAST, *SLOW], indirect=True)
@pytest.mark.parametrize("name", MODELS)
def test_models(name, policy, rng, tmp_path):
  build, make_data = MODELS[name]
  data = make_data(4, rng)
  model = build()
  model.compile(ConvMuon(1e-3) if name == "speech" else keras.optimizers.SGD(1e-3))
  history = model.fit(batches(data, 4), verbose=0).history
  assert all(np.isfinite(values).all() for values in history.values()), history
  predicted = model.predict(batches(data, 4), verbose=0)
  model.save(tmp_path / "model.keras")
  keras.config.set_dtype_policy("float32")
  loaded = keras.saving.load_model(tmp_path / "model.keras")
  if name != "vae":  # which draws its latents anew
    tf.nest.map_structure(np.testing.assert_array_equal, loaded.predict(batches(data, 4), verbose=0), predicted)
