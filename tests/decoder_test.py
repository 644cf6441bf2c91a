import itertools
import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvq.layers import CategoricalHead, VectorQuantizer
from tfvq.models import (
  VAE,
  VIMCO,
  VQVAE,
  AutoregressiveDecoder,
  ConvolutionalDecoder,
  DiscretizedLogistic,
  PixelCNN,
  WaveNet,
  gumbel_noise,
  image_decoder,
  image_encoder,
)

EMBEDDING_DIM, MAP_DIM = 8, 6


def global_latent_map(grid_shape):
  """A network from one latent to a map of the whole grid."""
  z = keras.Input((1, EMBEDDING_DIM))
  h = keras.layers.Dense(math.prod(grid_shape) * MAP_DIM)(keras.layers.Flatten()(z))
  return keras.Model(z, keras.layers.Reshape((*grid_shape, MAP_DIM))(h))


def grid_decoder(num_values, grid_shape, num_classes=0):
  """A PixelCNN that is conditioned on one latent, and on a class if there are any."""
  sizes = {"filters": 8, "num_layers": 1, "hidden_units": 16}
  model = PixelCNN(num_values, grid_shape, num_classes=num_classes, condition_dim=MAP_DIM, **sizes)
  return AutoregressiveDecoder(global_latent_map(grid_shape), model)


def grid_encoder(num_values, grid_shape, num_outputs):
  """A network from a grid of integers to one latent."""
  x = keras.Input(grid_shape, dtype="int32")
  h = keras.layers.Flatten()(keras.layers.Embedding(num_values, 8)(x))
  h = keras.layers.Dense(num_outputs)(keras.layers.Dense(32, activation="relu")(h))
  return keras.Model(x, keras.layers.Reshape((1, num_outputs))(h))


def autoencoder(kind, num_classes=0):
  """An autoencoder of 3 x 3 grids of four values."""
  decoder = grid_decoder(4, (3, 3), num_classes)
  if kind == "vae":
    return VAE(grid_encoder(4, (3, 3), 2 * EMBEDDING_DIM), decoder)
  if kind == "vimco":
    return VIMCO(grid_encoder(4, (3, 3), 16), decoder, 16, EMBEDDING_DIM, num_samples=3)
  return VQVAE(grid_encoder(4, (3, 3), EMBEDDING_DIM), VectorQuantizer(64, EMBEDDING_DIM), decoder)


@pytest.mark.parametrize("num_classes", [0, 2])
def test_probabilities_of_all_grids_given_latents_sum_to_one(num_classes, rng):
  decoder = grid_decoder(3, (2, 2), num_classes)
  grids = np.array(list(itertools.product(range(3), repeat=4)), np.int32).reshape(-1, 2, 2)
  sums, log_probs = [], []
  for _ in range(2):
    z = np.tile(rng.normal(size=(1, 1, EMBEDDING_DIM)).astype(np.float32), (81, 1, 1))
    condition = {"label": np.ones([81], np.int32)} if num_classes else None
    log_probs.append(decoder.log_prob(grids, z, condition).numpy())
    sums.append(np.exp(log_probs[-1]).sum())
  np.testing.assert_allclose(sums, 1, rtol=1e-4)
  assert np.abs(log_probs[0] - log_probs[1]).max() > 1e-3  # the latents have an influence


def test_probabilities_of_all_sequences_given_latents_sum_to_one(rng):
  z = keras.Input((None, EMBEDDING_DIM))
  network = keras.Model(z, keras.layers.Conv1D(MAP_DIM, 3, padding="same")(z))
  wavenet = WaveNet(CategoricalHead(3, hidden_units=8), channels=4, dilation_rates=(1, 2), condition_dim=MAP_DIM)
  decoder = AutoregressiveDecoder(network, wavenet)
  sequences = np.array(list(itertools.product(range(3), repeat=4)), np.int32).reshape(-1, 4, 1)
  z = np.tile(rng.normal(size=(1, 2, EMBEDDING_DIM)).astype(np.float32), (81, 1, 1))
  np.testing.assert_allclose(np.exp(decoder.log_prob(sequences, z)).sum(), 1, rtol=1e-4)
  samples = decoder.sample(z[:5], gumbel_noise(0, decoder.noise_shape(5, num_steps=4)))
  assert samples.shape == (5, 4, 1)


def test_codes_carry_what_a_pixelcnn_cannot_predict(tmp_path, rng):
  """Each grid is one of 8: without codes, at least 3 bits are needed; given the code, none are needed."""
  patterns = rng.integers(0, 4, (8, 3, 3)).astype(np.int32)
  model = autoencoder("vq")
  model.compile(keras.optimizers.Adam(1e-2))
  history = model.fit(np.tile(patterns, (16, 1, 1)), epochs=40, batch_size=16, verbose=0).history
  assert "psnr_db" not in history and {"bits_per_dim", "perplexity"} <= set(history)
  nll_bits = -model(patterns)["log_prob"] / np.log(2)
  assert np.mean(nll_bits) < 1
  bits_per_dim = model.evaluate(patterns, verbose=0, return_dict=True)["bits_per_dim"]
  np.testing.assert_allclose(9 * bits_per_dim, 6 + np.mean(nll_bits), rtol=1e-4)  # one of 64 codes
  noise = gumbel_noise(0, model.decoder.noise_shape(8))
  samples = tf.function(model.reconstruct)(patterns, noise=noise).numpy()
  assert samples.dtype == np.int32 and np.mean(np.all(samples == patterns, axis=(1, 2))) > 0.6
  np.testing.assert_array_equal(model.decode(model.encode(patterns), noise=noise), samples)
  model.save(tmp_path / "model.keras")
  loaded = keras.saving.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(loaded.reconstruct(patterns, noise=noise), samples)


@pytest.mark.parametrize("kind", ["vq", "vae", "vimco"])
def test_every_autoencoder_takes_an_autoregressive_decoder_and_its_conditions(kind, tmp_path, rng):
  model = autoencoder(kind, num_classes=2)
  x = np.repeat(rng.integers(0, 4, (2, 3, 3)).astype(np.int32), 8, axis=0)
  condition = {"label": np.repeat([0, 1], 8).astype(np.int32)}
  model.compile(keras.optimizers.Adam(1e-2))
  history = model.fit(tf.data.Dataset.from_tensors(((x, condition),)).repeat(20), epochs=2, verbose=0).history
  assert history["loss"][1] < history["loss"][0] and "bits_per_dim" in history
  noise = gumbel_noise(0, model.decoder.noise_shape(16))
  assert model.reconstruct(x, condition, noise).shape == x.shape
  model.export(tmp_path / "exported", verbose=False)
  loaded = tf.saved_model.load(str(tmp_path / "exported"))
  served = loaded.serve(tf.nest.map_structure(tf.constant, (x, condition)))
  assert served.keys() == {"log_prob", "latent_nats"}
  if kind != "vae":  # which draws its latents anew
    np.testing.assert_allclose(served["log_prob"], model((x, condition))["log_prob"], rtol=1e-4)


def test_a_vqvae_of_images_with_a_pixelcnn_decoder_learns(rng):
  shape, sizes = (4, 8, 3), {"embedding_dim": 4, "hidden_units": 8, "num_residual_blocks": 1}
  pixelcnn = PixelCNN(256, shape, filters=8, num_layers=2, hidden_units=16, ordinal=True, condition_dim=5)
  decoder = AutoregressiveDecoder(image_decoder((4, 8, 5), **sizes), pixelcnn)
  model = VQVAE(image_encoder(shape, **sizes), VectorQuantizer(8, 4), decoder)
  x = np.repeat(rng.integers(0, 256, (2, *shape)).astype(np.uint8), 4, axis=0)
  model.compile(keras.optimizers.Adam(1e-2))
  losses = model.fit(x, epochs=10, batch_size=4, verbose=0).history["loss"]
  assert losses[-1] < losses[0]
  samples = model.reconstruct(x[:2], noise=gumbel_noise(0, model.decoder.noise_shape(2)))
  assert samples.shape == (2, *shape)


def test_both_decoders_give_gradients_to_their_latents(rng):
  networks = image_decoder((4, 4, 6), embedding_dim=4, hidden_units=8)
  convolutional = ConvolutionalDecoder(networks, DiscretizedLogistic())
  pixelcnn = PixelCNN(256, (4, 4, 3), filters=4, num_layers=1, hidden_units=8, condition_dim=6)
  x, z = rng.integers(0, 256, (2, 4, 4, 3)), tf.constant(rng.normal(size=(2, 1, 1, 4)), tf.float32)
  for decoder in (convolutional, AutoregressiveDecoder(networks, pixelcnn)):
    with tf.GradientTape() as tape:
      tape.watch(z)
      log_prob = decoder.log_prob(x, z)
    assert log_prob.shape == (2,) and np.all(np.abs(tape.gradient(log_prob, z)) > 0)


def test_wrong_use_is_refused(rng):
  model = autoencoder("vq")
  x = rng.integers(0, 4, (4, 3, 3)).astype(np.int32)
  with pytest.raises(ValueError, match="give noise to draw a sample with"):
    model.reconstruct(x)
  with pytest.raises(ValueError, match="has no local condition for the latents: set its condition_dim"):
    AutoregressiveDecoder(global_latent_map((3, 3)), PixelCNN(4, (3, 3), filters=4, num_layers=1))
  with pytest.raises(ValueError, match="is conditioned on 'local', but the condition given has 'label' and 'local'"):
    model((x, {"label": np.zeros([4], np.int32)}))
  model.compile("sgd", jit_compile=True)
  x[2, 1, 1] = 4
  with pytest.raises(ValueError, match=r"25.0% of the examples for .* have a value outside 0\.\.3"):
    model.evaluate(x, verbose=0)
