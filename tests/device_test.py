import numpy as np
import pytest

from export.device import CodecError, SpeechCodec
from export.device.codec import GumbelNoise
from tests.sound import modulated_noise
from tfvq.models import gumbel_noise
from tfvq.models import speech_codec as keras_codec
from tfvq.release import load_released
from tfvq.tasks.stages import open_task


def test_device_codec_matches_keras_codec(codec_folder, speech_run_folder, rng):
  codec = SpeechCodec(codec_folder)
  expected = keras_codec.SpeechCodec(open_task(speech_run_folder).autoencoder, frames_per_part=25, jit_compile=False)
  audio = modulated_noise(7777, rng)
  np.testing.assert_array_equal(codec.encode(audio), expected.encode(audio))
  np.testing.assert_allclose(codec.gain_of(audio), expected.gain_of(audio), rtol=1e-6)
  codes = rng.integers(0, 16, [120, 2])
  parts = iter(range(10))

  def noise(num_steps):
    return gumbel_noise(3, [200, 1, *codec.facts["noise_shape"]], next(parts)).numpy()[:num_steps, 0]

  stream = codec.decoder(codec.speakers[1], temperature=0.7, noise=noise)
  spoken = np.concatenate([stream.push(codes), stream.finish()])
  reference = expected.decode(codes[np.newaxis], [1], seed=3, temperature=0.7)[0]
  assert spoken.shape == reference.shape == (7680,)
  # Keras continues to the end of the part, which affects the last samples.
  np.testing.assert_allclose(spoken[:-64], reference[:-64], atol=1e-4)


@pytest.mark.parametrize("num_samples", [0, 1, 63, 64, 65, 3200, 3201, 10_007])
def test_stream_matches_whole(num_samples, codec_folder, rng):
  codec = SpeechCodec(codec_folder)
  audio = modulated_noise(num_samples, rng)
  codes = codec.encode(audio)
  assert codes.shape == (-(-num_samples // 64), 2) and codes.dtype == np.int32
  spoken = codec.decode(codes, seed=4)
  assert spoken.shape == (64 * len(codes),) and spoken.dtype == np.float32
  encoder, decoder = codec.encoder(), codec.decoder(seed=4)
  some_codes, some_speech = [], []
  for start in range(0, num_samples, 997):
    some_codes.append(encoder.push(audio[start : start + 997]))
  some_codes = np.concatenate([*some_codes, encoder.finish()])
  np.testing.assert_array_equal(some_codes, codes)
  for start in range(0, len(codes), 13):
    some_speech.append(decoder.push(codes[start : start + 13]))
  np.testing.assert_array_equal(np.concatenate([*some_speech, decoder.finish()]), spoken)


def test_speaker_seed_and_temperature_change_output(codec_folder, rng):
  codec, codes = SpeechCodec(codec_folder), rng.integers(0, 16, [200, 2])
  first = codec.decode(codes)
  np.testing.assert_array_equal(first, codec.decode(codes, codec.speakers[0], seed=0))
  for other in (
    codec.decode(codes, codec.speakers[1]),
    codec.decode(codes, seed=1),
    codec.decode(codes, temperature=1.2),
  ):
    assert np.abs(other - first).max() > 1e-3


def test_shipped_codec_belongs_to_released_model(speech_run_folder, rng):
  codec, (model, facts) = SpeechCodec(), load_released()
  assert codec.speakers == facts["speakers"] and codec.num_embeddings == model.quantizer.num_embeddings
  spoken = np.concatenate([clip.audio for clip in open_task(speech_run_folder).corpus.clips("held_out")])
  for audio, least in ((modulated_noise(16_000, rng), 0.85), (spoken, 0.95)):
    codes, expected = codec.encode(audio), keras_codec.SpeechCodec(model).encode(audio)
    assert len(codes) >= 125 and np.mean(codes == expected) > least
  assert np.isfinite(codec.decode(codes[:50], speaker="it")).all()


def test_noise_is_standard_gumbel():
  noise = GumbelNoise(0, [4, 50])(5000)
  assert noise.shape == (5000, 4, 50) and noise.dtype == np.float32
  np.testing.assert_allclose(noise.mean(), np.euler_gamma, atol=5e-3)
  np.testing.assert_allclose(noise.var(), np.pi**2 / 6, atol=2e-2)
  probabilities = np.array([0.5, 0.3, 0.15, 0.05])
  draws = np.argmax(np.log(probabilities) + noise.reshape(-1, 4), axis=-1)
  np.testing.assert_allclose(np.bincount(draws) / len(draws), probabilities, atol=5e-3)


@pytest.mark.parametrize(
  ("codes", "arguments", "sentence"),
  [
    ([[16, 0]], {}, "Codes must be 0..15"),
    ([[0, -1]], {}, "Codes must be 0..15"),
    ([0, 1], {}, r"Codes have shape \[2\]; this model needs \[frames, 2\]"),
    ([[0, 0]], {"speaker": "nobody"}, "The model has no speaker 'nobody'"),
    ([[0, 0]], {"temperature": [1, 1]}, "temperature has shape"),
    ([[0, 0]], {"seed": -1}, "The seed is -1; give zero or a positive number"),
  ],
)
def test_invalid_arguments_are_rejected(codes, arguments, sentence, codec_folder):
  with pytest.raises(CodecError, match=sentence):
    SpeechCodec(codec_folder).decode(codes, **arguments)


def test_damaged_folder_is_rejected(codec_folder, tmp_path):
  with pytest.raises(CodecError, match="does not contain a complete codec"):
    SpeechCodec(tmp_path)
  for path in codec_folder.iterdir():
    (tmp_path / path.name).write_bytes(path.read_bytes())
  facts = (tmp_path / "codec.json").read_text()
  for wrong in ("[]", "null", "{", '{"files": 3}', '{"files": {}}'):
    (tmp_path / "codec.json").write_text(wrong)
    with pytest.raises(CodecError, match="does not contain a complete codec"):
      SpeechCodec(tmp_path)
  (tmp_path / "codec.json").write_text(facts)
  content = bytearray((tmp_path / "step.tflite").read_bytes())
  content[1000] ^= 1
  (tmp_path / "step.tflite").write_bytes(bytes(content))
  with pytest.raises(CodecError, match="step.tflite has changed since it was written"):
    SpeechCodec(tmp_path)
