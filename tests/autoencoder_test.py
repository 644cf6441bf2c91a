import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvq.layers import VectorQuantizer
from tfvq.models import (
  VAE,
  VIMCO,
  VQVAE,
  ConvolutionalDecoder,
  DiscretizedLogistic,
  FixedVarianceGaussian,
  image_decoder,
  image_encoder,
)
from tfvq.models.vimco import vimco_objective

SHAPE = (8, 12, 3)
SIZES = {"hidden_units": 8, "stem_units": 4, "num_residual_blocks": 1}


def make(kind, distribution, **sizes):
  sizes = {**SIZES, **sizes}
  network = image_decoder(SHAPE, embedding_dim=4, num_parameters=distribution.num_parameters, **sizes)
  decoder = ConvolutionalDecoder(network, distribution)

  def encoder(outputs):
    return image_encoder(SHAPE, embedding_dim=outputs, **sizes)

  if kind == "vae":
    return VAE(encoder(8), decoder)
  if kind == "vimco":
    return VIMCO(encoder(16), decoder, 16, 4, num_samples=5)
  return VQVAE(encoder(4), VectorQuantizer(16, 4), decoder)


def images(rng, num=8):
  return rng.integers(0, 256, (num, *SHAPE)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["vq", "vae", "vimco"])
@pytest.mark.parametrize("distribution", [DiscretizedLogistic(), FixedVarianceGaussian(0.3)])
def test_trains_reports_and_survives_saving(kind, distribution, tmp_path, rng):
  model = make(kind, distribution)
  model.compile(keras.optimizers.Adam(3e-3))
  x = np.repeat(images(rng, 2), 8, axis=0)
  history = model.fit(x, epochs=15, batch_size=8, verbose=0).history
  assert history["loss"][-1] < history["loss"][0]
  assert ("bits_per_dim" in history) == distribution.discrete
  assert ("perplexity" in history) == (kind == "vq")
  model.save(tmp_path / "model.keras")
  loaded = keras.saving.load_model(tmp_path / "model.keras")
  np.testing.assert_allclose(loaded.reconstruct(x), model.reconstruct(x), rtol=1e-5)


def test_vqvae_parts_fit_together(rng):
  model = make("vq", FixedVarianceGaussian(), latents_per_position=3)
  x = images(rng)
  codes = model.encode(x)
  assert codes.shape == (8, 2, 3, 3) and codes.dtype == tf.int32
  np.testing.assert_allclose(model.reconstruct(x), model.decode(codes))
  np.testing.assert_allclose(model(x)["mode"], model.decode(codes), rtol=1e-4, atol=1e-3)


def test_adapt_puts_the_codebook_where_the_encoder_is(rng):
  model = make("vq", FixedVarianceGaussian())
  x = images(rng, 32)
  before = len(np.unique(model.encode(x)))
  model.adapt(x)
  assert len(np.unique(model.encode(x))) > max(before, 12)


def test_an_image_size_that_the_strides_do_not_divide_is_refused():
  with pytest.raises(ValueError, match="10x8 is not divisible"):
    image_encoder((10, 8, 3), embedding_dim=4)


def test_vq_bound_has_log_k_per_code(rng):
  model = make("vq", DiscretizedLogistic())
  x = images(rng)
  output = model(x)
  np.testing.assert_allclose(output["latent_nats"], 2 * 3 * np.log(16), rtol=1e-6)
  model.compile("sgd")
  bits = model.evaluate(x, batch_size=3, verbose=0, return_dict=True)["bits_per_dim"]  # 3, 3 and 2
  parameters = model.decoder.network(model.quantizer.decode(model.encode(x)))
  log_prob = tf.reduce_mean(model.decoder.distribution.log_prob(parameters, x.astype(np.float32)))
  np.testing.assert_allclose(tf.reduce_mean(output["log_prob"]) / np.prod(SHAPE), log_prob, rtol=1e-4)
  np.testing.assert_allclose(bits, (6 * np.log(16) / np.prod(SHAPE) - log_prob) / np.log(2), rtol=1e-4)


def test_vae_latents_cost_their_divergence(rng):
  model = make("vae", DiscretizedLogistic())
  x = images(rng)
  mean, log_stddev = np.split(model.encoder(x).numpy().astype(np.float64), 2, axis=-1)
  expected = np.sum(0.5 * (mean**2 + np.exp(2 * log_stddev) - 1) - log_stddev, axis=(1, 2, 3))
  np.testing.assert_allclose(model(x)["latent_nats"], expected, rtol=1e-4)


def test_discretized_logistic_sums_to_one_and_has_the_mass_of_its_bins():
  distribution = DiscretizedLogistic()
  for mean, log_scale in ((0.0, -3.0), (0.9, -1.0), (-1.5, -5.0)):
    parameters = tf.tile(tf.constant([[mean, log_scale]]), [256, 1])
    log_prob = distribution.log_prob(parameters, tf.range(256, dtype=tf.float32)[:, tf.newaxis]).numpy()[:, 0]
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1, rtol=1e-4)
  parameters = tf.tile(tf.constant([[0.1, -3.0]]), [256, 1])
  log_prob = distribution.log_prob(parameters, tf.range(256, dtype=tf.float32)[:, tf.newaxis]).numpy()[:, 0]
  edges = (np.arange(257) - 0.5 - (0.1 * 127.5 + 127.5)) / (127.5 * np.exp(-3.0))
  cumulative = 1 / (1 + np.exp(-edges))
  cumulative[0], cumulative[-1] = 0, 1
  np.testing.assert_allclose(np.exp(log_prob), np.diff(cumulative), atol=1e-6)


def test_vimco_bound_and_gradient_by_hand():
  log_weights = np.array([[0.5], [-1.0], [2.0]])
  log_q = np.array([[-0.3], [-0.7], [-1.1]])
  weights = tf.constant(log_weights)
  q = tf.constant(log_q)
  with tf.GradientTape() as tape:
    tape.watch([weights, q])
    bound, surrogate = vimco_objective(weights, q)
  w = np.exp(log_weights[:, 0])
  np.testing.assert_allclose(bound, [np.log(w.mean())], rtol=1e-12)
  signals = []
  for s in range(3):
    others = np.delete(log_weights[:, 0], s)
    replaced = np.append(np.exp(others), np.exp(others.mean()))
    signals.append(np.log(w.mean()) - np.log(replaced.mean()))
  gradient_w, gradient_q = tape.gradient(surrogate, [weights, q])
  np.testing.assert_allclose(gradient_w[:, 0], w / w.sum(), rtol=1e-12)
  np.testing.assert_allclose(gradient_q[:, 0], signals, rtol=1e-12)


def test_vimco_gradient_is_unbiased():
  """Against the exact gradient of the expected bound of a one-bit latent, two samples."""
  logit = 0.4
  log_joint = np.log([0.7, 0.1])

  def expected_bound(logit):
    q = np.array([1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(logit))])
    log_w = log_joint - np.log(q)
    return sum(q[a] * q[b] * np.log((np.exp(log_w[a]) + np.exp(log_w[b])) / 2) for a in (0, 1) for b in (0, 1))

  exact = (expected_bound(logit + 1e-5) - expected_bound(logit - 1e-5)) / 2e-5
  draws = (np.random.default_rng(0).random((2, 200_000)) > 1 / (1 + np.exp(-logit))).astype(np.int32)
  variable = tf.Variable(logit, dtype=tf.float64)
  with tf.GradientTape() as tape:
    log_q_both = tf.math.log_sigmoid(tf.stack([variable, -variable]))
    log_q = tf.gather(log_q_both, draws)
    log_w = tf.gather(tf.constant(log_joint), draws) - log_q
    _, surrogate = vimco_objective(log_w, log_q)
    mean = tf.reduce_mean(surrogate)
  np.testing.assert_allclose(tape.gradient(mean, variable), exact, atol=5e-3)


def test_vimco_with_one_sample_is_refused():
  with pytest.raises(ValueError, match="num_samples"):
    VIMCO(None, None, 4, 4, num_samples=1)


@pytest.mark.parametrize("kind", ["vq", "vae", "vimco"])
def test_predictions_are_per_image(kind, rng):
  model = make(kind, DiscretizedLogistic())
  model.compile("sgd")
  predicted = model.predict(images(rng, 7), batch_size=3, verbose=0)
  assert predicted["mode"].shape == (7, *SHAPE) and predicted["log_prob"].shape == predicted["latent_nats"].shape == (
    7,
  )


def test_vimco_gives_the_most_probable_latents_and_their_cost(rng):
  model = make("vimco", DiscretizedLogistic())
  x = images(rng)
  output = model(x)
  np.testing.assert_allclose(output["mode"], model.reconstruct(x), rtol=1e-5)
  np.testing.assert_allclose(output["latent_nats"], [6 * np.log(16)] * 8, rtol=1e-6)


def test_vimco_trains_on_all_its_samples(rng):
  """The loss and the metric of a step against the bound of the same samples in NumPy."""
  model = make("vimco", DiscretizedLogistic())
  x = images(rng, 3)
  model.compile(keras.optimizers.SGD(0.0))
  state = model.seed_generator.state.numpy()
  z, latent_nats = (np.array(value) for value in model._samples(x, True))
  model.seed_generator.state.assign(state)
  repeated = np.tile(x, (5, 1, 1, 1)).astype(np.float32)
  log_prob = model.decoder.distribution.log_prob(model.decoder.network(z), repeated).numpy()
  log_weights = log_prob.astype(np.float64).sum(axis=(1, 2, 3)).reshape(5, 3) - latent_nats
  highest = log_weights.max(axis=0)
  bound = np.log(np.mean(np.exp(log_weights - highest), axis=0)) + highest
  figures = model.train_on_batch(x, return_dict=True)
  np.testing.assert_allclose(figures["bits_per_dim"], -bound.mean() / np.prod(SHAPE) / np.log(2), rtol=1e-4)


@pytest.mark.parametrize("kind", ["vq", "vae", "vimco"])
def test_models_are_exported_after_fit(kind, tmp_path, rng):
  model = make(kind, DiscretizedLogistic())
  x = images(rng, 3)
  model.compile("sgd")
  model.fit(x, verbose=0)
  model.export(tmp_path / "exported", verbose=False)
  loaded = tf.saved_model.load(str(tmp_path / "exported"))
  served = loaded.serve(tf.constant(x, tf.float32))
  expected = model(x)
  assert served.keys() == expected.keys() and served["mode"].shape == x.shape
  np.testing.assert_allclose(served["latent_nats"], expected["latent_nats"], rtol=1e-4)
  if kind != "vae":  # which draws its latents anew
    np.testing.assert_allclose(served["log_prob"], expected["log_prob"], rtol=1e-4)
    np.testing.assert_allclose(served["mode"], expected["mode"], rtol=1e-4, atol=1e-3)


def test_weights_of_examples_are_refused(rng):
  model = make("vq", FixedVarianceGaussian())
  model.compile("sgd")
  for run in (model.fit, model.evaluate):
    with pytest.raises(ValueError, match="leave out sample_weight"):
      run(images(rng), sample_weight=np.ones(8), verbose=0)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_images_in_0_to_1_are_warned_about_once(jit_compile, rng):
  model = make("vae", FixedVarianceGaussian())
  model.compile("sgd", jit_compile=jit_compile)
  with pytest.warns(UserWarning, match="give values in 0..255, not 0..1"):
    model.fit(images(rng).astype(np.float32) / 255, verbose=0)
  with warnings.catch_warnings():
    warnings.filterwarnings("error", message="No value")
    model.fit(images(rng).astype(np.float32) / 255, verbose=0)
    other = make("vae", FixedVarianceGaussian())
    other.compile("sgd")
    other.fit(images(rng), verbose=0)


def test_a_convolutional_decoder_takes_neither_noise_nor_a_condition(rng):
  model = make("vq", FixedVarianceGaussian())
  codes = model.encode(images(rng, 1))
  with pytest.raises(ValueError, match="draws no samples"):
    model.decode(codes, noise=np.zeros([1]))
  with pytest.raises(ValueError, match="takes no condition, but was given 'label'"):
    model.decode(codes, {"label": np.zeros([1], np.int32)})


@pytest.mark.parametrize("kind", ["vq", "vimco"])
def test_codes_out_of_range_are_refused(kind):
  model = make(kind, FixedVarianceGaussian())
  for code in (-1, 16):
    with pytest.raises(ValueError, match=r"0\.\.15"):
      model.decode(np.full([1, 2, 3], code))


def test_networks_without_downsampling_never_stride(rng):
  sizes = {"embedding_dim": 4, "num_downsamplings": 0, **SIZES}
  encoder, decoder = image_encoder((5, 7, 3), **sizes), image_decoder((5, 7, 3), **sizes)
  assert encoder.output_shape == (None, 5, 7, 4) and decoder.output_shape == (None, 5, 7, 3)
