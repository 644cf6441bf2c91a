import numpy as np
import pytest

from export.device import CodecError, SpeechCodec
from export.device.generation import GumbelNoise
from tests.sound import modulated_noise
from tfvq.models import speech_codec as keras_codec
from tfvq.release import load_released
from tfvq.tasks.stages import open_task


def test_shipped_codec_belongs_to_released_model(speech_run_folder, rng):
  codec, (model, facts) = SpeechCodec(), load_released()
  assert codec.speakers == facts["speakers"] and codec.num_values == model.quantizer.num_values
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
