"""Models of images and of speech with every kind of quantiser."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.sound import speech_like
from tests.tiny import tiny
from tfvq.configs import common
from tfvq.layers import VectorQuantizer, build_quantizer
from tfvq.models import VQVAE, ConvolutionalDecoder, DiscretizedLogistic, SpeechVQVAE, image_decoder, image_encoder
from tfvq.models.speech_codec import SpeechCodec
from tfvq.tasks.speech import build_speech_vqvae

KINDS = ("vector", "residual", "product", "finite_scalar", "lookup_free", "soft_to_hard")
SMALL = {"num_embeddings": 16, "num_levels": 2, "num_groups": 2, "levels": (4, 3, 2), "num_bits": 3}


def quantizer_of(kind):
  return build_quantizer(common.quantizer(kind=kind, **SMALL), dim=4)


def image_model(quantizer, latents):
  sizes = {"hidden_units": 8, "stem_units": 4, "num_residual_blocks": 1, "latents_per_position": latents}
  encoder = image_encoder((8, 12, 3), embedding_dim=4, **sizes)
  distribution = DiscretizedLogistic()
  network = image_decoder((8, 12, 3), embedding_dim=4, num_parameters=distribution.num_parameters, **sizes)
  return VQVAE(encoder, quantizer, ConvolutionalDecoder(network, distribution))


def speech_model(kind, latents):
  config = tiny("speech").autoencoder
  config.update({"latents_per_position": latents, "embedding_dim": 4})
  built = build_speech_vqvae(config, num_speakers=2)
  return SpeechVQVAE(built.encoder, quantizer_of(kind), built.decoder)


@pytest.mark.parametrize(("kind", "latents"), [*((kind, 1) for kind in KINDS), ("residual", 3)])
def test_images_with_every_kind(kind, latents, rng, tmp_path):
  model = image_model(quantizer_of(kind), latents)
  x = rng.integers(0, 256, (8, 8, 12, 3)).astype(np.uint8)
  model.adapt(x)
  codes = model.encode(x)
  assert codes.shape == (8, 2, 3, *([latents] if latents > 1 else []), *model.quantizer.code_shape)
  assert model.decode(codes).shape == x.shape
  nats = model(x)["latent_nats"]
  np.testing.assert_allclose(nats, 2 * 3 * latents * model.quantizer.bits * np.log(2), rtol=1e-6)
  model.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
  assert np.isfinite(model.fit(x, verbose=0).history["loss"]).all()
  model.save(tmp_path / "model.keras")
  loaded = keras.saving.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(loaded.encode(x), model.encode(x))


def test_all_latents_of_a_position_share_one_codebook(rng):
  quantizer = VectorQuantizer(16, 4)
  model = image_model(quantizer, latents=3)
  x = rng.integers(0, 256, (8, 8, 12, 3)).astype(np.uint8)
  z_e = model.encoder(x)
  assert z_e.shape == (8, 2, 3, 3, 4)
  for latent in range(3):
    np.testing.assert_array_equal(model.encode(x)[..., latent], quantizer.encode(z_e[..., latent, :]))


@pytest.mark.parametrize(("kind", "latents"), [*((kind, 1) for kind in KINDS), ("residual", 2)])
def test_speech_with_every_kind(kind, latents, rng, tmp_path):
  model = speech_model(kind, latents)
  audio = np.stack([speech_like(40 * model.hop_samples, rng)] * 2)
  speaker = np.array([0, 1], np.int32)
  model.adapt(audio)
  codes = model.encode(audio)
  assert model.frame_shape == (*([latents] if latents > 1 else []), *model.quantizer.code_shape)
  assert codes.shape == (2, 40, *model.frame_shape)
  for each in (model, model.spectral):
    each.compile(keras.optimizers.Adam(1e-3), run_eagerly=True)
    assert np.isfinite(each.fit({"audio": audio, "speaker": speaker}, verbose=0).history["loss"]).all()
  codec = SpeechCodec(model)
  assert codec.encode(audio[0]).shape == (40, *model.frame_shape)
  np.testing.assert_array_equal(codec.encode(audio), [codec.encode(recording) for recording in audio])
  model.save(tmp_path / "model.keras")
  loaded = keras.saving.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(loaded.encode(audio), model.encode(audio))


def test_a_codec_speaks_codes_of_several_levels(rng):
  codec = SpeechCodec(speech_model("residual", latents=1))
  codes = codec.encode(speech_like(5 * codec.model.hop_samples, rng))[np.newaxis]
  for number in (1, 2):
    assert codec.decode(codes[..., :number], [1]).shape == (1, 5 * codec.model.hop_samples)
  quantizer, decoder = codec.model.quantizer, codec.model.decoder
  first, both = (decoder.local_condition(quantizer.decode(codes[..., :number]), [1]) for number in (1, 2))
  assert np.abs(first - both).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_while_nothing_is_quantised_the_quantiser_does_not_learn(kind, rng):
  model = speech_model(kind, latents=1).spectral
  audio = np.stack([speech_like(64 * 40, rng)] * 2)
  batch = tf.data.Dataset.from_tensors({"audio": audio, "speaker": np.array([0, 1])})
  changed = {}
  for quantizing in (False, True):
    model.quantizing = quantizing
    before = [np.array(weight) for weight in model.quantizer.weights]
    model.compile(keras.optimizers.SGD(1.0))
    with warnings.catch_warnings():
      warnings.filterwarnings("error", message="Gradients do not exist")
      model.fit(batch, verbose=0)
    changed[quantizing] = any(np.any(a != b) for a, b in zip(before, model.quantizer.weights, strict=True))
  assert changed == {False: False, True: True}
