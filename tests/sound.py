"""Audio that several tests use."""

import numpy as np

from tfvq.data.speech_sources import Recording
from tfvq.errors import UserError

SAMPLE_RATE_HZ = 16_000


def tone(seconds, rate_hz=SAMPLE_RATE_HZ, frequency_hz=440.0):
  """A sine of amplitude 0.3, float32 [seconds * rate_hz]."""
  return (0.3 * np.sin(2 * np.pi * frequency_hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def speech_like(num_samples, rng):
  """A gliding tone with overtones and some noise, float32 [num_samples] in -1..1."""
  phase = np.cumsum(2 * np.pi * (150 + 50 * np.sin(np.arange(num_samples) / 4000)) / SAMPLE_RATE_HZ)
  audio = sum(np.sin(k * phase) / k for k in range(1, 6)) + 0.1 * rng.normal(size=num_samples)
  return (0.1 * audio).astype(np.float32)


def fake_recordings(num_sentences=60, speakers=("ann", "bob"), broken=()):
  """Recordings of tones, ann's at 300 Hz, others' at 200 Hz; those in `broken`, (sentence, speaker), cannot be read."""

  def reader(sentence, speaker):
    def read():
      if (sentence, speaker) in broken:
        raise UserError("it is broken.")
      return tone(1.0 + 0.01 * sentence, frequency_hz=300 if speaker == "ann" else 200), ()

    return read

  return [
    Recording(f"{speaker}/{sentence:03d}", speaker, reader(sentence, speaker), sentence=f"{sentence:03d}")
    for speaker in speakers
    for sentence in range(num_sentences)
  ]


def modulated_noise(num_samples, rng):
  """Noise of varying loudness, float32 [num_samples]."""
  return (0.1 * np.abs(np.sin(np.arange(num_samples) / 3000)) * rng.normal(size=num_samples)).astype(np.float32)
