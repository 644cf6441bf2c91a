"""The interface that the codec of Keras models and the codec for devices share."""

import numpy as np
import pytest

from export.device import SpeechCodec as DeviceCodec
from tests.sound import modulated_noise
from tfvq.models.speech_codec import SpeechCodec as KerasCodec
from tfvq.tasks.stages import open_task


@pytest.fixture(scope="module")
def codecs(codec_folder, speech_run_folder):
  task = open_task(speech_run_folder)
  temperature = task.config.samples.temperature
  keras_codec = KerasCodec(task.autoencoder, task.corpus.speakers, temperature, frames_per_part=25, jit_compile=False)
  return {"keras": keras_codec, "device": DeviceCodec(codec_folder)}


@pytest.fixture(params=["keras", "device"])
def codec(request, codecs):
  return codecs[request.param]


def in_parts(stream, values, size):
  """What a stream returns for parts of some size, concatenated."""
  parts = [stream.push(values[start : start + size]) for start in range(0, len(values), size)]
  return np.concatenate([*parts, stream.finish()])


def test_both_codecs_describe_the_model_alike(codecs):
  first, second = codecs.values()
  for name in ("sample_rate_hz", "hop_samples", "frame_shape", "num_values", "speakers"):
    assert getattr(first, name) == getattr(second, name)


def test_both_codecs_give_the_same_codes_and_speech(codecs, rng):
  audio, speech = modulated_noise(7777, rng), {}
  first, second = (codec.encode(audio) for codec in codecs.values())
  np.testing.assert_array_equal(first, second)
  np.testing.assert_allclose(*(codec.gain_of(audio) for codec in codecs.values()), rtol=1e-6)
  for name, codec in codecs.items():
    noise_rng = np.random.default_rng(0)
    # Any sequence of calls draws the same numbers one after another.
    noise = lambda num_steps, noise_rng=noise_rng: noise_rng.gumbel(
      size=[num_steps, *codecs["device"].facts["noise_shape"]]
    ).astype(np.float32)
    speech[name] = in_parts(codec.decoder(codec.speakers[1], temperature=0.7, noise=noise), first, 17)
  assert speech["keras"].shape == speech["device"].shape == (122 * 64,)
  np.testing.assert_allclose(speech["keras"], speech["device"], atol=1e-4)


@pytest.mark.parametrize("num_samples", [0, 1, 63, 64, 65, 3200, 3201, 10_007])
def test_a_stream_gives_what_the_whole_gives(num_samples, codec, rng):
  audio = modulated_noise(num_samples, rng)
  codes = codec.encode(audio)
  assert codes.shape == (-(-num_samples // 64), 2) and codes.dtype == np.int32
  speech = codec.decode(codes, seed=4)
  assert speech.shape == (64 * len(codes),) and speech.dtype == np.float32
  np.testing.assert_array_equal(in_parts(codec.encoder(), audio, 997), codes)
  np.testing.assert_array_equal(in_parts(codec.decoder(seed=4), codes, 13), speech)


def test_a_batch_has_the_codes_and_the_shape_of_its_recordings(codec, rng):
  audio = np.stack([modulated_noise(3000, rng) for _ in range(2)])
  codes = codec.encode(audio)
  np.testing.assert_array_equal(codes, [codec.encode(recording) for recording in audio])
  speech = codec.decode(codes, [1, codec.speakers[0]], seed=2)
  assert speech.shape == (2, 64 * 47) and speech.dtype == np.float32
  assert codec.decode(codes[:1], [1], seed=2).shape == (1, 64 * 47)
  assert codec.encode(audio[:, :0]).shape == (2, 0, 2) and codec.decode(codes[:, :0], [0, 1]).shape == (2, 0)


def test_speaker_seed_and_temperature_change_the_speech(codec, rng):
  codes = rng.integers(0, 16, [60, 2])
  first = codec.decode(codes)
  np.testing.assert_array_equal(first, codec.decode(codes, codec.speakers[0], seed=0))
  np.testing.assert_array_equal(codec.decode(codes, 1), codec.decode(codes, codec.speakers[1]))
  for other in (codec.decode(codes, 1), codec.decode(codes, seed=1), codec.decode(codes, temperature=1.2)):
    assert np.abs(other - first).max() > 1e-3


@pytest.mark.parametrize(
  ("samples", "sentence"),
  [
    ([0.0, np.nan, 0.0], "Samples must be finite"),
    ([0.0, -np.inf], "Samples must be finite"),
    ([1e39], "Samples must be finite"),
    (np.zeros([1, 1, 200]), r"Samples have shape \[1, 1, 200\]; give"),
    (0.5, r"Samples have shape \[\]"),
  ],
)
@pytest.mark.parametrize("call", ["push", "encode", "gain_of"])
def test_invalid_samples_are_rejected(samples, sentence, call, codec):
  function = codec.encoder().push if call == "push" else getattr(codec, call)
  with pytest.raises(ValueError, match=sentence):
    function(samples)


@pytest.mark.parametrize(
  ("codes", "sentence"),
  [
    ([[0.5, 1.0]], "Codes must be integers"),
    ([[np.nan, 0.0]], "Codes must be integers"),
    ([[16, 0]], r"Codes.* must be in 0\.\.15"),
    ([[0, -1]], r"Codes.* must be in 0\.\.15"),
    ([0, 1], r"Codes have shape \[2\]; this model needs \[frames, 2\]"),
  ],
)
def test_invalid_codes_are_rejected(codes, sentence, codec):
  with pytest.raises(ValueError, match=sentence):
    codec.decoder().push(codes)


@pytest.mark.parametrize(
  ("arguments", "sentence"),
  [
    ({"speaker": "nobody"}, "The model has no speaker 'nobody'"),
    ({"speaker": 2}, "The model has no speaker 2"),
    ({"speaker": -1}, "The model has no speaker -1"),
    ({"temperature": [1, 1]}, "temperature has shape"),
    ({"temperature": np.nan}, "The temperature must be zero or more"),
    ({"temperature": np.inf}, "The temperature must be zero or more"),
    ({"temperature": -0.1}, "The temperature must be zero or more"),
    ({"seed": -1}, "The seed is -1; give zero or a positive number"),
  ],
)
def test_invalid_arguments_are_rejected(arguments, sentence, codec):
  with pytest.raises(ValueError, match=sentence):
    codec.decoder(**arguments)


def test_speakers_and_recordings_must_match(codec):
  with pytest.raises(ValueError, match="speakers|shape"):
    codec.decode(np.zeros([2, 3, 2], np.int32), [0])


def test_a_rejected_call_leaves_the_stream_unchanged(codec, rng):
  audio = (0.1 * rng.normal(size=9000)).astype(np.float32)
  encoder, codes = codec.encoder(), []
  for part in np.split(audio, 3):
    codes.append(encoder.push(part))
    with pytest.raises(ValueError, match="finite"):
      encoder.push([np.nan])
  codes = np.concatenate([*codes, encoder.finish()])
  np.testing.assert_array_equal(codes, codec.encode(audio))
  decoder = codec.decoder()
  with pytest.raises(ValueError, match="Codes"):
    decoder.push(codes[:3] + 10_000)
  speech = np.concatenate([decoder.push(codes[:3]), decoder.finish()])
  np.testing.assert_array_equal(speech, codec.decode(codes[:3]))


def test_empty_input_gives_empty_output(codec):
  assert codec.gain_of([]) == 1.0 and codec.encode([]).shape == (0, *codec.frame_shape)
  assert codec.decode(codec.encode([])).shape == (0,)
