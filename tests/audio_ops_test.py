import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfvq.layers import AudioValues, LogMel, VoicePerturbation
from tfvq.ops.mu_law import compress, expand, mu_law_decode, mu_law_encode
from tfvq.ops.subbands import filter_bank, join_bands, split_into_bands


def test_mu_law_values_are_the_middles_of_their_own_intervals():
  values = np.arange(256)
  np.testing.assert_array_equal(mu_law_encode(mu_law_decode(values)), values)
  assert np.all(np.diff(mu_law_decode(values)) > 0)
  np.testing.assert_array_equal(mu_law_encode([-2.0, -1.0, 0.0, 1.0, 2.0]), [0, 0, 128, 255, 255])


@given(st.floats(-1, 1, width=32))
def test_companding_is_undone_and_its_error_bounded(x):
  np.testing.assert_allclose(expand(compress(tf.constant(x))), x, atol=1e-6)
  # Half an interval: its width in the companded domain over the slope there.
  slope = 255 / np.log(256) / (1 + 255 * abs(x))
  assert abs(float(mu_law_decode(mu_law_encode(x))) - x) <= 1.02 / 256 / slope + 1e-6


@pytest.mark.parametrize("num_bands", [2, 3, 4, 8, 16])
def test_sub_bands_are_the_filtered_audio_and_give_it_back(num_bands, rng):
  audio = rng.normal(size=(2, 240 * num_bands))
  bands = split_into_bands(tf.constant(audio), num_bands)
  analysis, _ = filter_bank(num_bands)
  reach = len(analysis) // 2
  for band in range(num_bands):
    filtered = np.convolve(audio[1], analysis[:, band])[reach : reach + audio.shape[1] : num_bands]
    np.testing.assert_allclose(bands[1, :, band], filtered, atol=1e-9)
  error = (join_bands(bands) - audio)[:, 2 * reach : -2 * reach]
  assert 10 * np.log10(np.mean(audio**2) / np.mean(error**2)) > (64 if num_bands == 4 else 58)


def test_a_tone_lands_in_its_band():
  time = np.arange(16_000) / 16_000
  for band, frequency_hz in enumerate((1000, 3000, 5000, 7000)):
    bands = split_into_bands(tf.constant(np.sin(2 * np.pi * frequency_hz * time)[np.newaxis]), 4)
    power = np.mean(bands[0, 50:-50] ** 2, axis=0)
    assert np.argmax(power) == band and np.delete(power, band).max() < 1e-5 * power[band]


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 48_000])
def test_log_mel_of_a_tone_peaks_at_its_frequency_and_frames_are_centred(rate_hz):
  layer = LogMel(num_bands=80, sample_rate_hz=rate_hz)
  time = np.arange(6400) / rate_hz
  frames = layer(np.sin(2 * np.pi * 1000 * time)[np.newaxis].astype(np.float32))
  assert frames.shape == (1, 100, 80)
  peak = int(np.argmax(frames[0, 50]))
  mel = lambda hz: 1127 * np.log1p(hz / 700)
  width = (mel(rate_hz / 2) - mel(40)) / 81
  assert abs(mel(40) + (peak + 1) * width - mel(1000)) < width
  click = np.zeros([1, 6400], np.float32)
  click[0, 64 * 30 : 64 * 31] = 0.5
  energy = np.mean(layer(click)[0], axis=-1)
  np.testing.assert_allclose(energy[30 - 3 : 30], energy[31 : 31 + 3][::-1], atol=0.02)
  assert np.argmax(energy) == 30
  assert np.all(np.isfinite(layer(np.zeros([1, 640], np.float32))))


@pytest.mark.parametrize(
  ("rate_hz", "hop_samples", "given", "window_samples"),
  [
    (16_000, 64, None, 400),
    (16_000, 128, 400, 400),
    (16_000, 640, None, 640),
    (16_000, 32, 64, 64),
    (8000, 40, None, 200),
    (44_100, 441, None, 1102),
    (48_000, 192, None, 1200),
  ],
)
def test_log_mel_is_that_of_a_plain_transform(rate_hz, hop_samples, given, window_samples, rng):
  audio = 0.1 * rng.normal(size=hop_samples * 20)
  fft_size = 2 ** int(np.ceil(np.log2(window_samples)))
  window = 0.5 - 0.5 * np.cos(2 * np.pi * (np.arange(window_samples) + 0.5) / window_samples)
  mel = tf.signal.linear_to_mel_weight_matrix(20, fft_size // 2 + 1, rate_hz, 40.0, rate_hz / 2).numpy()
  expected = []
  for frame in range(5, 15):
    start = frame * hop_samples + hop_samples // 2 - window_samples // 2
    spectrum = np.abs(np.fft.rfft(audio[start : start + window_samples] * window / window.sum(), fft_size))
    expected.append(np.log(np.maximum(spectrum @ mel, 1e-5)) / 4 + 1.4)
  layer = LogMel(num_bands=20, hop_samples=hop_samples, window_samples=given, sample_rate_hz=rate_hz)
  np.testing.assert_allclose(layer(audio[np.newaxis].astype(np.float32))[0, 5:15], expected, atol=1e-4)
  with pytest.raises(ValueError, match="even"):
    LogMel(window_samples=401)


@pytest.mark.parametrize(("num_bands", "num_values", "least_db"), [(1, 256, 30), (4, 256, 30), (1, 65_536, 70)])
def test_audio_values_give_the_audio_back(num_bands, num_values, least_db, rng):
  audio = np.cumsum(rng.normal(size=(2, 4000)), axis=1)
  audio = (0.5 * (audio - audio.mean()) / np.abs(audio - audio.mean()).max()).astype(np.float32)
  layer = AudioValues(num_bands, num_values)
  layer.adapt(audio)
  values = layer(audio).numpy()
  assert values.shape == (2, 4000 // num_bands, num_bands) and values.min() >= 0 and values.max() < num_values
  error = (layer.decode(values) - audio)[:, 64:-64]
  assert 10 * np.log10(np.mean(audio**2) / np.mean(error**2)) > least_db


def test_levels_follow_the_data_and_survive_saving(tmp_path, rng):
  audio = 0.01 * rng.normal(size=(2, 200_000)).astype(np.float32)
  layer = AudioValues(4)
  layer.adapt(audio)
  magnitudes = np.abs(split_into_bands(tf.constant(audio), 4))
  np.testing.assert_allclose((magnitudes > layer.levels).mean(axis=(0, 1)), 1e-4, rtol=0.1)
  assert AudioValues.from_config(layer.get_config()).num_bands == 4


def test_features_of_audio_are_those_of_float32_whatever_the_policy(rng):
  audio = rng.uniform(-0.5, 0.5, (1, 1024)).astype(np.float32)
  layers = [LogMel, lambda: AudioValues(num_bands=4)]
  expected = [build()(audio) for build in layers]
  keras.config.set_dtype_policy("mixed_bfloat16")
  for build, features in zip(layers, expected, strict=True):
    np.testing.assert_array_equal(build()(audio), features)


def tone_spectra(frequency_hz, num_clips=1):
  time = np.arange(6400) / 16_000
  audio = np.sin(2 * np.pi * frequency_hz * time).astype(np.float32)
  return LogMel(num_bands=80)(np.tile(audio, [num_clips, 1]))[:, 10:-10]


def test_perturbation_scales_frequencies_clip_by_clip():
  perturbed = VoicePerturbation(scale=0.3, level=0.0, seed=1)(tone_spectra(1000, num_clips=64), training=True)
  peaks = np.argmax(perturbed, axis=-1)
  assert np.all(peaks == peaks[:, :1])
  # Every band from that of 741 Hz to that of 1350 Hz is met by some clip; none goes past them.
  lowest, highest = (int(np.argmax(tone_spectra(1000 * np.exp(sign * 0.3))[0, 0])) for sign in (-1, 1))
  assert lowest - 1 <= peaks.min() <= lowest + 2 and highest - 2 <= peaks.max() <= highest + 1


def test_perturbation_of_levels_is_smooth_and_of_its_size():
  spectra = tf.zeros([2000, 3, 80])
  levels = VoicePerturbation(scale=0.0, level=0.1, seed=1)(spectra, training=True).numpy()
  np.testing.assert_array_equal(levels[:, 0], levels[:, 2])
  # Four orthogonal cosines of that deviation, the first a constant.
  np.testing.assert_allclose(levels.var(axis=0).mean(), 0.01 * (1 + 3 / 2), rtol=0.05)
  assert np.abs(np.diff(levels[:, 0])).max() < 0.1


def test_perturbation_is_for_training_only_and_not_for_frozen_encoders():
  spectra = tone_spectra(1000)
  layer = VoicePerturbation(scale=0.3, seed=1)
  assert np.abs(layer(spectra, training=True) - spectra).max() > 0.1
  np.testing.assert_array_equal(layer(spectra), spectra)
  layer.trainable = False
  np.testing.assert_array_equal(layer(spectra, training=True), spectra)
  with pytest.raises(ValueError, match="negative"):
    VoicePerturbation(scale=-0.1)
