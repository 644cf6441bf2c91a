"""Invalid input of the device codec."""

import numpy as np
import pytest

from export.device import CodecError, SpeechCodec


@pytest.fixture(scope="module")
def codec():
  return SpeechCodec()


@pytest.mark.parametrize(
  ("samples", "sentence"),
  [
    ([0.0, np.nan, 0.0], "Samples must be finite"),
    ([0.0, -np.inf], "Samples must be finite"),
    ([1e39], "Samples must be finite"),
    (np.zeros([1, 200]), r"Samples have shape \[1, 200\]; give one channel, \[samples\]"),
    (0.5, r"Samples have shape \[\]"),
  ],
)
@pytest.mark.parametrize("call", ["push", "encode", "gain_of"])
def test_invalid_samples_are_rejected(samples, sentence, call, codec):
  function = codec.encoder().push if call == "push" else getattr(codec, call)
  with pytest.raises(CodecError, match=sentence):
    function(samples)


@pytest.mark.parametrize(
  ("codes", "sentence"),
  [
    ([[0.5, 1.0]], "Codes must be integers"),
    ([[np.nan, 0.0]], "Codes must be integers"),
    ([[0, 512]], r"Codes must be 0\.\.511"),
    ([[-1, 0]], r"Codes must be 0\.\.511"),
    ([0, 1], r"Codes have shape \[2\]"),
  ],
)
def test_invalid_codes_are_rejected(codes, sentence, codec):
  with pytest.raises(CodecError, match=sentence):
    codec.decoder().push(codes)


@pytest.mark.parametrize("temperature", [np.nan, np.inf, -0.1])
def test_invalid_temperature_is_rejected(temperature, codec):
  with pytest.raises(CodecError, match="The temperature must be zero or more"):
    codec.decoder(temperature=temperature)


def test_rejected_call_leaves_stream_unchanged(codec, rng):
  audio = (0.1 * rng.normal(size=9000)).astype(np.float32)
  encoder, codes = codec.encoder(), []
  for part in np.split(audio, 3):
    codes.append(encoder.push(part))
    with pytest.raises(CodecError):
      encoder.push([np.nan])
  codes = np.concatenate([*codes, encoder.finish()])
  np.testing.assert_array_equal(codes, codec.encode(audio))
  decoder = codec.decoder()
  with pytest.raises(CodecError):
    decoder.push(codes[:3] + 10_000)
  speech = np.concatenate([decoder.push(codes[:3]), decoder.finish()])
  np.testing.assert_array_equal(speech, codec.decode(codes[:3]))


def test_empty_input_gives_empty_output(codec):
  assert codec.gain_of([]) == 1.0 and codec.encode([]).shape == (0, *codec.frame_shape)
  assert codec.decode(codec.encode([])).shape == (0,)
  assert codec.decode(np.zeros([0, *codec.frame_shape])).shape == (0,)
