import numpy as np
import pytest
import tensorflow as tf

from export import onnx, tflite
from tfvq.endpoints.fast_wavenet import WaveNetStep, WaveNetSteps
from tfvq.endpoints.wavenet import step_endpoint
from tfvq.layers import CategoricalHead, LogisticMixtureHead
from tfvq.models import WaveNet, gumbel_noise, noise_shape, sample
from tfvq.tasks.stages import open_task


def wavenet(num_bands, rng, **changes):
  """A WaveNet with random weights."""
  head = CategoricalHead(16, num_bands, hidden_units=8)
  model = WaveNet(head, channels=8, dilation_rates=(1, 2, 4, 1, 2), condition_dim=3, **changes)
  for variable in model.variables:
    variable.assign(0.3 * rng.normal(size=variable.shape))
  return model


def generation(model, num_frames, steps_per_frame, rng):
  """A projected condition, noise, and the values of the Keras sampler: ([F, 1, 2CL], noise, int32 [T, G])."""
  noise = gumbel_noise(3, noise_shape(model, 1, num_frames * steps_per_frame))
  condition = {"local": tf.constant(rng.normal(size=[1, num_frames, 3]), tf.float32)}
  values = sample(model, noise, condition, 0.7)[0]
  return model.project_condition(condition), noise, values.numpy()


@pytest.mark.parametrize("num_bands", [1, 3])
@pytest.mark.parametrize("ordinal", [True, False])
def test_wavenet_step_samples_like_keras(num_bands, ordinal, rng):
  model = wavenet(num_bands, rng, ordinal=ordinal)
  projected, noise, expected = generation(model, num_frames=6, steps_per_frame=4, rng=rng)
  step, x = WaveNetStep(model), tf.zeros([1, 8])
  rings = [[tf.zeros([8])] * rate for rate in model.dilation_rates]
  for time in range(24):
    past = tf.stack([ring[time % len(ring)] for ring in rings])
    outputs = step(x, past, projected[time // 4], noise[time], tf.fill([num_bands], 0.7))
    np.testing.assert_array_equal(outputs["values"][0], expected[time])
    for ring, new in zip(rings, outputs["inputs"], strict=True):
      ring[time % len(ring)] = new
    x = outputs["x_next"]


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("num_bands", [1, 3])
def test_wavenet_steps_sample_like_keras(num_steps, num_bands, rng):
  model = wavenet(num_bands, rng)
  projected, noise, expected = generation(model, num_frames=3, steps_per_frame=24, rng=rng)
  steps = WaveNetSteps(model, num_steps)
  run = tf.function(lambda projected, noise: steps(projected, noise, tf.fill([num_bands], 0.7)))
  for _ in range(2):
    for variable in steps.state:
      variable.assign(tf.zeros_like(variable))
    for time in range(0, 72, num_steps):
      values = run(projected[time // 24], noise[time : time + num_steps, 0])
      np.testing.assert_array_equal(values, expected[time : time + num_steps])


@pytest.mark.slow
def test_speech_steps_are_exported_with_state(exported_speech, speech_run_folder, rng):
  """Several calls of the file give the audio of one call of Keras, eight steps later."""
  model = open_task(speech_run_folder).autoencoder
  runner = tflite.Runner((exported_speech / "tflite" / "none" / "steps.tflite").read_bytes())
  codes, speaker = tf.constant(rng.integers(0, 16, [1, 12, 2])), tf.constant([1])
  wavenet = model.decoder.wavenet
  condition = {"local": model.decoder.local_condition(model.quantizer.decode(codes), speaker)}
  projected = wavenet.project_condition(condition).numpy()
  noise = gumbel_noise(3, noise_shape(wavenet, 1, 96))
  values = sample(wavenet, noise, condition, 0.8)
  expected = wavenet.audio_values.decode(values)[0]
  for _ in range(2):
    runner.reset()
    parts = [
      runner(
        share=projected[time // 8],
        noise=noise[time : time + 4, 0].numpy(),
        temperature=np.full([8], 0.8, np.float32),
      )["audio"]
      for time in range(0, 96, 4)
    ]
    np.testing.assert_allclose(np.concatenate(parts)[64:], expected[:-64], atol=1e-4)


def test_step_with_logistic_mixture_is_exported(rng):
  model = WaveNet(LogisticMixtureHead(65_536, 1, hidden_units=8), channels=8, dilation_rates=(1, 2), condition_dim=3)
  projected, noise, expected = generation(model, num_frames=2, steps_per_frame=4, rng=rng)
  inputs = {
    "x": np.zeros([1, 8], np.float32),
    "past": np.zeros([2, 8], np.float32),
    "share": projected[0].numpy(),
    "noise": noise[0].numpy(),
    "temperature": np.full([1], 0.7, np.float32),
  }
  endpoint = step_endpoint(model, lambda split: [inputs])
  for runner in (tflite.Runner(tflite.write(endpoint, "none")), onnx.Runner(onnx.convert(endpoint))):
    np.testing.assert_array_equal(runner(**inputs)["values"][0], expected[0])
