"""Every model on one replica and on two: equal losses and metrics, independent noise for each example."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.sound import speech_like
from tests.tiny import tiny
from tfvq.layers import CategoricalHead, LogisticMixtureHead, VectorQuantizer, VoicePerturbation
from tfvq.models import (
  VAE,
  VIMCO,
  VQVAE,
  AutoregressiveDecoder,
  ConvolutionalDecoder,
  DiscretizedLogistic,
  FixedVarianceGaussian,
  PixelCNN,
  SpectralVQVAE,
  WaveNet,
  conditioner,
  image_decoder,
  image_encoder,
  log_mel_encoder,
)
from tfvq.tasks.speech import build_speech_vqvae

SHAPE = (4, 4, 1)
SIZES = {"hidden_units": 8, "num_residual_blocks": 1, "num_downsamplings": 1}


def image_networks(outputs, distribution):
  network = image_decoder(SHAPE, embedding_dim=4, num_parameters=distribution.num_parameters, **SIZES)
  return image_encoder(SHAPE, embedding_dim=outputs, **SIZES), ConvolutionalDecoder(network, distribution)


def vqvae(decay):
  encoder, decoder = image_networks(4, FixedVarianceGaussian())
  return VQVAE(encoder, VectorQuantizer(8, 4, decay=decay, revival_threshold=0.0), decoder)


def vqvae_of_codes():
  """A VQ-VAE whose decoder is a PixelCNN that is conditioned on the latents and a label."""
  x = keras.Input((4, 4), dtype="int32")
  embedded = keras.layers.Embedding(6, 4)(x)
  encoder = keras.Model(x, keras.layers.Conv2D(4, 2, strides=2)(embedded))
  pixelcnn = PixelCNN(6, (4, 4), filters=4, num_layers=1, hidden_units=8, num_classes=3, condition_dim=4)
  network = image_decoder((4, 4, 4), embedding_dim=4, num_downsamplings=1, hidden_units=8)
  quantizer = VectorQuantizer(8, 4, revival_threshold=0.0)
  return VQVAE(encoder, quantizer, AutoregressiveDecoder(network, pixelcnn))


def vae():
  """A VAE whose noise is negligible."""
  model = VAE(*image_networks(8, DiscretizedLogistic()))
  model.encoder.layers[-1].bias.assign([0.0] * 4 + [-20.0] * 4)
  return model


def vimco():
  return VIMCO(*image_networks(8, DiscretizedLogistic()), 8, 4, num_samples=2)


def certain_vimco():
  """A VIMCO whose samples of the latents are always the same."""
  model = vimco()
  model.encoder.layers[-1].kernel.assign(1e6 * model.encoder.layers[-1].kernel)
  model.encoder.layers[-1].bias.assign(100.0 * np.arange(8))  # where all features are zero
  return model


def spectral():
  networks = log_mel_encoder(4, hidden_units=8), VectorQuantizer(8, 4), conditioner(4, 2, condition_dim=8)
  return SpectralVQVAE(*networks)


def speech(null_rate=0.0):
  config = tiny("speech").autoencoder
  config.update({"null_rate": null_rate, "voice_perturbation": 0.0})
  config.decoder.update({"layers_per_stack": 2, "num_stacks": 1})
  return build_speech_vqvae(config, num_speakers=2)


def images(num, rng):
  return rng.integers(0, 256, (num, *SHAPE)).astype(np.uint8)


def labelled_codes(num, rng):
  label = rng.integers(0, 3, num).astype(np.int32)
  return (rng.integers(0, 6, (num, 4, 4)).astype(np.int32), {"label": label})


def codes(num, rng):
  return rng.integers(0, 6, (num, 3, 4)).astype(np.int32)


def steps(num, rng):
  return rng.integers(0, 6, (num, 12, 2)).astype(np.int32)


def spoken_steps(num, rng):
  local = rng.normal(size=(num, 4, 3)).astype(np.float32)
  return (steps(num, rng), {"local": local, "speaker": rng.integers(0, 3, num).astype(np.int32)})


def clips(num, rng):
  audio = speech_like(num * 64 * 40, rng).reshape(num, -1)
  return {"audio": audio, "speaker": rng.integers(0, 2, num).astype(np.int32)}


MODELS = {
  "vqvae": (lambda: vqvae(0.99), images),
  "vqvae_loss": (lambda: vqvae(None), images),
  "vqvae_of_codes": (vqvae_of_codes, labelled_codes),
  "vae": (vae, images),
  "vimco": (certain_vimco, images),
  "pixelcnn": (lambda: PixelCNN(6, (3, 4), filters=4, num_layers=2, hidden_units=8), codes),
  "pixelcnn_class": (
    lambda: PixelCNN(6, (3, 4), filters=4, num_layers=1, hidden_units=8, num_classes=3),
    lambda num, rng: (codes(num, rng), {"label": rng.integers(0, 3, num).astype(np.int32)}),
  ),
  "wavenet": (lambda: WaveNet(CategoricalHead(6, 2, hidden_units=8), 4, (1, 2)), steps),
  "wavenet_spoken": (
    lambda: WaveNet(LogisticMixtureHead(6, 2, hidden_units=8), 4, (1, 2), condition_dim=3, num_speakers=3),
    spoken_steps,
  ),
  "spectral": (spectral, clips),
  "speech": (speech, clips),
}


def batches(data, size=6):
  """Batches for `fit`; the last one may be smaller."""
  dataset = tf.data.Dataset.from_tensor_slices(data).batch(size)
  return dataset.map(lambda *x: (x,)) if isinstance(data, tuple) else dataset


def figures(strategy, build, data):
  """Results of evaluation, prediction and training for two epochs."""
  keras.utils.set_random_seed(1)
  with strategy.scope():
    model = build()
    model.compile(keras.optimizers.SGD(1e-3))
  evaluated = model.evaluate(batches(data), verbose=0, return_dict=True)
  predicted = model.predict(batches(data), verbose=0)
  trained = model.fit(batches(data), epochs=2, verbose=0, shuffle=False).history
  return evaluated, predicted, trained, [np.array(value) for value in model.get_weights()]


# The last batch leaves one replica without an example, or with fewer.
@pytest.mark.parametrize("num", [13, pytest.param(15, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", MODELS)
def test_two_replicas_give_the_metrics_of_one(name, num, two_replicas, rng):
  build, make_data = MODELS[name]
  data = make_data(num, rng)
  ours, expected = (figures(strategy, build, data) for strategy in (two_replicas, tf.distribute.get_strategy()))
  for one, other in zip(ours[0::2], expected[0::2], strict=True):
    assert one.keys() == other.keys()
    for metric in one:
      np.testing.assert_allclose(one[metric], other[metric], rtol=2e-4, atol=1e-6, err_msg=metric)
  tf.nest.map_structure(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), ours[1], expected[1])
  assert {len(value) for value in tf.nest.flatten(ours[1])} == {num}
  for one, other in zip(ours[3], expected[3], strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def per_replica(strategy, function):
  """The results of a function on each replica."""
  results = strategy.run(tf.function(function))
  return [tf.nest.map_structure(np.array, value) for value in strategy.experimental_local_results(results)]


def test_replicas_draw_noise_of_their_own(two_replicas, rng):
  with two_replicas.scope():
    layer = VoicePerturbation(0.3, seed=1)
    model = VAE(*image_networks(8, FixedVarianceGaussian()))
    sampled = vimco()
    talker = speech(null_rate=0.5)
  talker.null.assign(tf.ones_like(talker.null))
  spectra = tf.constant(np.repeat(rng.normal(size=(1, 5, 80)), 4, axis=0), tf.float32)
  image = tf.constant(np.repeat(images(1, rng), 4, axis=0), tf.float32)
  clip = tf.nest.map_structure(lambda x: tf.repeat(x[:1], 12, axis=0), clips(1, rng))
  draws = {
    "perturbation": per_replica(two_replicas, lambda: layer(spectra, training=True)),
    "vae": per_replica(two_replicas, lambda: model(image, training=True)["mode"]),
    "vimco": per_replica(two_replicas, lambda: sampled._samples(image, True)[1]),
    "null": per_replica(two_replicas, lambda: talker(clip, training=True)),
  }
  for name, (first, second) in draws.items():
    assert np.any(first != second), name
    if name != "null":  # which is one of two for every clip
      assert len({value.tobytes() for value in (*np.moveaxis(first, name == "vimco", 0),)}) == len(image), name


def test_the_replicas_of_a_training_seed_agree_on_the_weights(two_replicas, rng):
  with two_replicas.scope():
    model = VAE(*image_networks(8, FixedVarianceGaussian()))
    model.compile("sgd")
  model.fit(images(13, rng), batch_size=6, verbose=0)
  for variable in model.trainable_variables:
    first, second = (value.numpy() for value in two_replicas.experimental_local_results(variable.value))
    np.testing.assert_array_equal(first, second)
