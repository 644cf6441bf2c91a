"""Loudness of speech, and detection of silence."""

import numpy as np

# Models are trained on audio whose parts that are not silent have this root mean square: -22 dB relative to full scale.
LEVEL = 0.08
FRAMES_PER_SECOND = 100  # power is measured in frames of 10 ms

_SILENCE = 1e-4  # power of silence relative to that of the loud frames
_MIN_POWER = 1e-9


def frame_powers(audio, sample_rate_hz: int) -> np.ndarray:
  """Mean squares of frames of 10 ms, which are S = sample_rate_hz / 100 samples.

  Args:
    audio: Float [T].
    sample_rate_hz: Its sample rate, a multiple of 100.

  Returns:
    Float64 [ceil(T / S)]; the last frame is padded with zeros.
  """
  frame_samples = sample_rate_hz // FRAMES_PER_SECOND
  frames = np.pad(audio, [0, -len(audio) % frame_samples]).reshape(-1, frame_samples)
  return np.mean(frames.astype(np.float64) ** 2, axis=1)


def is_sounding(powers) -> np.ndarray:
  """Marks the frames of a recording that are not silent, powers [N] -> bool [N].

  Their power is at most 40 dB below the 95th percentile of the powers, or below a tenth of the highest power if that is
  more.
  """
  if not len(powers):
    return np.zeros(0, bool)
  loud = max(np.percentile(powers, 95), np.max(powers) / 10)
  return powers > max(loud * _SILENCE, _MIN_POWER)


def gain_to_level(powers) -> float:
  """The factor that scales a recording to `LEVEL`, from the powers of its frames [N]; 1 for silence."""
  sounding = powers[is_sounding(powers)]
  return float(LEVEL / np.sqrt(np.mean(sounding))) if len(sounding) else 1.0
