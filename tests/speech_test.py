import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.sound import speech_like
from tests.tiny import config_of, tiny
from tfvq.data.speech_corpus import Clip
from tfvq.evaluation.sections import curves_section
from tfvq.evaluation.speech_metrics import likelihoods
from tfvq.layers import AudioValues, CategoricalHead
from tfvq.models import (
  SpeechVQVAE,
  WaveNet,
  WaveNetDecoder,
  conditioner,
  gumbel_noise,
  log_mel_encoder,
  sample,
  waveform_encoder,
)
from tfvq.models.speech_codec import SpeechCodec
from tfvq.models.speech_networks import context_of
from tfvq.release import load_released
from tfvq.tasks.speech import build_speech_vqvae
from tfvq.tasks.stages import open_task, run_stages
from tfvq.training.callbacks import Curves, ProgressBar, read_curves
from tfvq.training.training import make_optimizer


def speech_model(**changes) -> SpeechVQVAE:
  """A small untrained model of two speakers."""
  config = tiny("speech").autoencoder
  config.update(changes)
  return build_speech_vqvae(config, num_speakers=2)


@pytest.mark.parametrize("encoder", ["log_mel", "waveform"])
@pytest.mark.parametrize("strides", [(2,) * 6, (2,) * 7, (2, 2, 2, 2, 2, 4, 5)])
@pytest.mark.parametrize(("latents", "frame_shape"), [(1, ()), (2, (2,)), (3, (3,))])
def test_codes_and_nats_have_the_rate_of_the_strides(encoder, strides, latents, frame_shape, rng):
  model = speech_model(encoder=encoder, strides=strides, latents_per_position=latents)
  hop_samples = int(np.prod(strides))
  audio = np.stack([speech_like(hop_samples * 20, rng)] * 2)
  assert model.frame_shape == frame_shape and model.encode(audio).shape == (2, 20, *frame_shape)
  assert model.nats_per_sample(audio, tf.constant([0, 1])).shape == (2,)


@pytest.mark.parametrize(
  ("encoder", "hop_samples", "reach"),
  [
    (waveform_encoder(4, hidden_units=8), 64, 2),
    (waveform_encoder(4, (2, 4, 5), hidden_units=8), 40, 2),
    (log_mel_encoder(4, hidden_units=8), 64, 7),
    (log_mel_encoder(4, 160, 8, dilation_rates=(1, 3)), 160, 9),
  ],
)
def test_an_encoder_looks_no_further_than_its_context(encoder, hop_samples, reach, rng):
  for variable in encoder.variables:
    variable.assign(rng.normal(size=variable.shape))
  audio = rng.normal(size=[1, 60 * hop_samples]).astype(np.float32)
  changed = audio.copy()
  changed[:, 30 * hop_samples : 31 * hop_samples] *= -0.5
  differing = np.flatnonzero(np.any(encoder(audio).numpy() != encoder(changed).numpy(), axis=(0, 2)))
  assert 30 - differing[0] <= context_of(encoder) and differing[-1] - 30 <= context_of(encoder)
  assert max(30 - differing[0], differing[-1] - 30) == reach


def test_a_conditioner_looks_no_further_than_its_context(rng):
  network = conditioner(4, num_speakers=1, condition_dim=8, dilation_rates=(1, 2, 4))
  for variable in network.variables:
    variable.assign(rng.normal(size=variable.shape))
  z_q, speaker = rng.normal(size=[1, 41, 4]), np.zeros([1], np.int32)
  changed = z_q + np.eye(41)[:, [20]]
  differing = np.flatnonzero(np.any(network([z_q, speaker]) != network([changed, speaker]), axis=(0, 2)))
  assert (20 - differing[0], differing[-1] - 20) == (context_of(network), context_of(network)) == (10, 10)


@pytest.mark.parametrize(
  ("num_bands", "distribution", "latents"),
  [(1, "categorical", 1), (4, "categorical", 1), (1, "logistic_mixture", 1), (8, "categorical", 2)],
)
def test_training_lowers_the_loss_and_uses_the_codes(num_bands, distribution, latents, rng):
  config = tiny("speech").autoencoder
  config.latents_per_position = latents
  config.decoder.update({"num_bands": num_bands, "distribution": distribution})
  if distribution == "logistic_mixture":
    config.decoder.num_values = 65_536
  model = build_speech_vqvae(config, num_speakers=2)
  audio = speech_like(64 * 400, rng).reshape(4, -1)
  batch = {"audio": tf.constant(audio), "speaker": tf.constant([0, 1, 0, 1])}
  model.adapt(audio)
  model.compile(keras.optimizers.Adam(0.01))
  rows = model.fit(tf.data.Dataset.from_tensors(batch).repeat(60), epochs=2, verbose=0).history
  assert rows["nats_per_sample"][1] < rows["nats_per_sample"][0]
  assert rows["mel_error"][1] < rows["mel_error"][0] and rows["perplexity"][1] > 2
  clips = [Clip("a", 0, audio[0], np.zeros([0, 5])), Clip("b", 1, audio[1], np.zeros([0, 5]))]
  measured = likelihoods(model, clips, num_speakers=2)
  np.testing.assert_allclose(
    measured["nats_per_sample"], np.mean(model.nats_per_sample(audio[:2], tf.constant([0, 1]))), rtol=1e-4
  )
  z_q = tf.broadcast_to(model.null, [*model.encode(audio[:2]).shape, model.quantizer.embedding_dim])
  null = np.mean(model.nats_per_sample(audio[:2], tf.constant([0, 1]), z_q))
  np.testing.assert_allclose(measured["gain_nats"], null - measured["nats_per_sample"], atol=1e-4)


def test_only_the_inside_of_a_training_clip_is_trained_on(rng):
  """The loss of `call` is that of the decoder for the inside of the clip, given codes of the whole clip."""
  model = speech_model()
  margin = model.margin_frames
  audio = np.stack([speech_like(64 * (2 * margin + 24), rng)])
  speaker = tf.constant([1])
  nats = model({"audio": tf.constant(audio), "speaker": speaker}, training=False)
  local = model.decoder.local_condition(model.quantizer.decode(model.encode(audio)), speaker)[:, margin:-margin]
  values = model.decoder.audio_values(audio)[:, margin * 8 : -margin * 8]
  expected = -model.decoder.wavenet.log_prob(values, {"local": local}) / (24 * 64)
  np.testing.assert_allclose(nats, expected, rtol=1e-5)


def test_a_clip_that_is_all_margin_is_refused():
  model = speech_model()
  clip = {"audio": tf.zeros([1, 64 * 2 * model.margin_frames]), "speaker": tf.constant([0])}
  for each in (model, model.spectral):
    with pytest.raises(ValueError, match="Clips of 34 frames .* give at least 35 frames"):
      each(clip)


def test_the_null_condition_replaces_the_codes_of_some_clips(rng):
  model = speech_model(null_rate=0.5)
  model.null.assign(rng.normal(size=model.null.shape))
  audio = np.stack([speech_like(64 * (2 * model.margin_frames + 30), rng)] * 40)
  nats = model({"audio": tf.constant(audio), "speaker": tf.zeros([40], tf.int32)}, training=True).numpy()
  assert len(np.unique(nats.round(5))) == 2
  rows = model.get_metrics_result()
  assert abs(float(rows["gain_nats"])) > 0
  np.testing.assert_allclose(
    rows["nats_per_sample"], [n for n in np.unique(nats) if abs(n - rows["nats_per_sample"]) < 1e-4][0], atol=1e-4
  )
  assert "gain_nats" not in speech_model(null_rate=0.0).get_metrics_result()


def test_voices_are_perturbed_only_while_the_encoder_is_trained(rng, tmp_path):
  model = speech_model(encoder="log_mel", voice_perturbation=0.25)
  audio = speech_like(64 * 40, rng)[np.newaxis]
  encoded = lambda training: model.encoder(audio, training=training).numpy()
  assert np.abs(encoded(True) - encoded(True)).max() > 1e-3
  model.encoder.trainable = False
  np.testing.assert_array_equal(encoded(True), encoded(False))
  model.save(tmp_path / "model.keras")
  loaded = keras.saving.load_model(tmp_path / "model.keras", compile=False)
  np.testing.assert_array_equal(loaded.encode(audio), model.encode(audio))


def test_a_model_survives_saving(tmp_path, rng):
  model = speech_model()
  audio = np.stack([speech_like(64 * 20, rng)])
  model.adapt(audio)
  model.save(tmp_path / "model.keras")
  again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
  np.testing.assert_array_equal(again.encode(audio), model.encode(audio))
  speaker = tf.constant([1])
  np.testing.assert_allclose(again.nats_per_sample(audio, speaker), model.nats_per_sample(audio, speaker), rtol=1e-6)


def test_the_likelihood_pads_clips_like_the_codec(rng):
  model = speech_model()
  audio = speech_like(64 * 30, rng)
  model.adapt(audio[np.newaxis])
  context = model.decoder.context_frames
  codes = np.pad(SpeechCodec(model).encode(audio), [(context, context), (0, 0)], mode="edge")
  local = model.decoder.local_condition(model.quantizer.decode(codes[np.newaxis]), np.array([1]))[:, context:-context]
  values = model.decoder.audio_values(audio[np.newaxis])
  expected = -model.decoder.wavenet.log_prob(values, {"local": local}) / len(audio)
  np.testing.assert_allclose(model.nats_per_sample(audio[np.newaxis], tf.constant([1])), expected, rtol=1e-6)


def test_audio_is_encoded_in_parts_as_at_once(rng):
  model = speech_model()
  audio = speech_like(350_001, rng)
  model.adapt(audio[np.newaxis, :32_000])
  codes = SpeechCodec(model).encode(audio)
  # The codec pads recordings with silence.
  whole = np.pad(audio, [20 * 64, -len(audio) % 64 + 20 * 64])
  np.testing.assert_array_equal(codes, model.encode(whole[np.newaxis])[0, 20:-20])


@pytest.mark.parametrize(("num_bands", "latents"), [(1, 2), (4, 1), (8, 2)])
def test_speech_is_decoded_in_parts_as_at_once(num_bands, latents, rng):
  config = tiny("speech").autoencoder
  config.decoder.num_bands = num_bands
  config.latents_per_position = latents
  model = build_speech_vqvae(config, num_speakers=2)
  decoder = model.decoder
  codes, speaker = rng.integers(0, 16, (2, 23, *model.frame_shape)), np.array([1, 0])
  audio = SpeechCodec(model, frames_per_part=10).decode(codes, speaker, seed=5, temperature=0.8)
  assert audio.shape == (2, 23 * 64)
  noise = tf.concat([gumbel_noise(5, decoder.noise_shape(2, 640), part) for part in range(3)], axis=0)
  noise, z = noise[: 23 * decoder.steps_per_frame], model.quantizer.decode(codes)
  whole = decoder.sample(z, noise, {"speaker": speaker}, 0.8)
  np.testing.assert_allclose(audio, whole, atol=1e-5)
  # The same by its parts: the first and the last codes are repeated for the conditioner.
  filled = np.concatenate([codes[:, :1]] * 9 + [codes] + [codes[:, -1:]] * 9, axis=1)
  local = decoder.local_condition(model.quantizer.decode(filled), speaker)[:, 9:-9]
  values = sample(decoder.wavenet, noise, {"local": local}, 0.8)
  np.testing.assert_allclose(whole, decoder.audio_values.decode(values), atol=1e-5)
  log_prob = decoder.wavenet.log_prob(decoder.audio_values(whole), {"local": local})
  np.testing.assert_allclose(decoder.log_prob(whole, z, {"speaker": speaker}), log_prob, rtol=1e-5)


def test_the_gain_brings_speech_to_the_level_of_training(rng):
  codec = SpeechCodec(speech_model())
  audio = np.concatenate([np.zeros(20_000), speech_like(200_000, rng), np.zeros(30_000)]).astype(np.float32)
  gain = codec.gain_of(audio)
  np.testing.assert_allclose(gain * np.std(audio[20_000:220_000]), 0.08, rtol=0.02)
  assert codec.gain_of(np.zeros(5000, np.float32)) == 1


def clips(model, rng, num=4):
  audio = np.stack([speech_like(64 * (2 * model.margin_frames + 20), rng)] * num)
  return tf.data.Dataset.from_tensors({"audio": tf.constant(audio), "speaker": tf.zeros([num], tf.int32)})


def test_a_metric_without_data_is_absent(rng, tmp_path):
  model = speech_model(null_rate=0.5)
  model.compile("sgd")
  evaluated = model.evaluate(clips(model, rng), verbose=0, return_dict=True)
  assert "gain_nats" not in evaluated and np.isfinite(evaluated["nats_per_sample"])
  model.null_rate = 1.0
  trained = model.fit(clips(model, rng), verbose=0).history
  assert not {"gain_nats", "nats_per_sample", "mel_error"} & set(trained) and "loss" in trained
  curves = Curves(tmp_path / "curves.csv", 1)
  model.make_train_function(force=True)
  model.fit(clips(model, rng), callbacks=[curves, ProgressBar("speech", 3, curves)], verbose=0)
  model.null_rate = 0.5
  model.make_train_function(force=True)
  model.fit(clips(model, rng, 16), callbacks=[curves, ProgressBar("speech", 3, curves)], verbose=0)
  first, second = read_curves(tmp_path / "curves.csv")[-2:]
  assert "gain_nats" not in first and "gain_nats" in second
  assert curves_section("curves", [first, second]).image


def test_unknown_speakers_are_refused():
  model = speech_model()
  z = np.zeros([1, 20, *model.encoder.output_shape[2:]], np.float32)
  with pytest.raises(ValueError, match=r"Speakers.* must be in 0\.\.1"):
    model.decoder.local_condition(z, np.array([2]))
  for condition in (None, {"label": np.array([0])}):
    with pytest.raises(ValueError, match="has the condition 'speaker', but was given"):
      model.decoder.log_prob(np.zeros([1, 20 * 64], np.float32), z, condition)


def test_a_decoder_of_speech_needs_audio_values_and_a_local_condition():
  network = conditioner(4, num_speakers=2, condition_dim=8)
  arguments = {"channels": 8, "dilation_rates": (1, 2)}
  head = CategoricalHead(16, hidden_units=8)
  for wavenet in (
    WaveNet(head, condition_dim=8, **arguments),
    WaveNet(head, audio_values=AudioValues(1, 16), **arguments),
  ):
    with pytest.raises(ValueError, match="cannot decode speech: give it audio_values and a condition_dim"):
      WaveNetDecoder(network, wavenet)


def test_clips_of_unknown_speakers_are_refused(rng):
  model = speech_model()
  model.compile("sgd", jit_compile=True)
  batch = clips(model, rng).map(lambda clip: {**clip, "speaker": clip["speaker"] + 2})
  for each in (model, model.spectral):
    each.compile("sgd", jit_compile=True)
    with pytest.raises(ValueError, match=r"100.0% of the clips for .* have a speaker outside 0\.\.1"):
      each.fit(batch, verbose=0)


def test_a_model_is_exported_after_fit(rng, tmp_path):
  model = speech_model()
  model.compile("sgd")
  model.fit(clips(model, rng), verbose=0)
  model.export(tmp_path / "exported", verbose=False)
  clip = next(iter(clips(model, rng)))
  loaded = tf.saved_model.load(str(tmp_path / "exported"))
  served = loaded.serve(clip)
  np.testing.assert_allclose(served, model(clip), rtol=1e-4)


def test_the_released_model_loads(rng):
  model, facts = load_released()
  audio = speech_like(model.hop_samples * 30, rng)[np.newaxis]
  assert len(facts["temperature"]) == model.decoder.num_bands
  assert model.encode(audio).shape == (1, 30, *model.frame_shape)


@pytest.mark.slow
def test_a_tiny_version_runs_through_every_stage(speech_run_folder):
  metrics = json.loads((speech_run_folder / "metrics.json").read_text())
  assert 0 < metrics["prior_bits_per_code"] < 8 and metrics["kilobits_per_second"] == 2.0
  assert {"nats_per_sample", "gain_nats", "gain_over_shuffled_nats", "perplexity"} <= set(metrics)
  names = {path.name for path in (speech_run_folder / "samples").glob("*.wav")}
  assert names == {
    *("prior-00-en-us+m1.wav", "prior-01-en-us+f2.wav"),
    *(f"{index:02d}-{kind}.wav" for index in range(2) for kind in ("original", "reconstruction", "conversion")),
  }
  page = (speech_run_folder / "report.html").read_text()
  assert page.count("<audio") == 8 and "data:audio/wav;base64" in page


@pytest.mark.slow
def test_the_decoder_is_trained_on_the_codes_of_the_spectral_stage(speech_run_folder):
  run = open_task(speech_run_folder)
  parts = {}
  for name in ("spectral/unquantized", "spectral"):
    model = run.build_autoencoder()
    model.spectral.load_weights(speech_run_folder / "autoencoder" / name / "checkpoint.keras")
    parts[name] = model
  learned, spectral = run.autoencoder, parts["spectral"]
  for a, b in zip(learned.encoder.weights, spectral.encoder.weights, strict=True):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(learned.quantizer.codebook, spectral.quantizer.codebook)
  for a, b in zip(spectral.encoder.weights, parts["spectral/unquantized"].encoder.weights, strict=True):
    assert np.any(np.array(a) != np.array(b)), a.path


@pytest.mark.slow
def test_the_report_shows_the_tables_of_external_programs(speech_run_folder, tmp_path):
  shutil.copytree(speech_run_folder, tmp_path / "run")
  table = {"title": "Quality of 3 clips", "columns": ["codec", "stoi"], "rows": [["tfvq", "0.814"]]}
  (tmp_path / "run" / "quality.json").write_text(json.dumps({"tables": [table]}))
  (tmp_path / "run" / "evaluation" / "done.json").unlink()
  run_stages(open_task(tmp_path / "run"), "evaluation")
  page = (tmp_path / "run" / "report.html").read_text()
  assert "Quality of 3 clips" in page and "0.814" in page


@pytest.mark.slow
def test_the_paper_config_builds_and_takes_a_step(rng, capsys):
  config = config_of("speech", "paper")
  model = build_speech_vqvae(config.autoencoder, num_speakers=109)
  model.compile(make_optimizer(config.train.autoencoder))
  audio = np.stack([speech_like(64 * 20, rng)] * 2)
  batch = {"audio": tf.constant(audio), "speaker": tf.constant([3, 108])}
  history = model.fit(tf.data.Dataset.from_tensors(batch), verbose=0).history
  assert np.isfinite(history["loss"]).all()
  with capsys.disabled():
    print(f"\nspeech:paper parameters: autoencoder {model.count_params():,}")
