"""Sub-bands of audio: a pseudo-quadrature mirror filter bank, critically sampled.

Reference: Nguyen, "Near-perfect-reconstruction pseudo-QMF banks", IEEE Trans. Signal Processing 42 (1994); its use
with WaveNets: arXiv 1909.01700 (DurIAN, section 2.3).
"""

import functools

import numpy as np
import tensorflow as tf

CONTEXT_STEPS = 8  # band samples on either side that an audio sample depends on

_KAISER_BETA = 9.0


@functools.cache
def filter_bank(num_bands: int) -> tuple[np.ndarray, np.ndarray]:
  """Impulse responses of analysis and synthesis, float64 [16 num_bands - 1, num_bands] each, for 2 or more bands."""
  num_taps = 2 * CONTEXT_STEPS * num_bands - 1
  time = np.arange(num_taps) - num_taps // 2
  cutoff = (0.566 + 0.008 / num_bands) / num_bands  # of the Nyquist frequency; minimises the round-trip error
  prototype = cutoff * np.sinc(cutoff * time) * np.kaiser(num_taps, _KAISER_BETA)
  band = np.arange(num_bands)
  angle = (2 * band + 1) * np.pi / (2 * num_bands) * time[:, np.newaxis]
  phase = (-1.0) ** band * np.pi / 4
  prototype = 2 * prototype[:, np.newaxis]
  return prototype * np.cos(angle + phase), prototype * np.cos(angle - phase)


def split_into_bands(x, num_bands: int) -> tf.Tensor:
  """Audio, float [B, T] with T a multiple of `num_bands` -> sub-bands, [B, T / num_bands, num_bands], lowest first."""
  analysis, _ = filter_bank(num_bands)
  # TensorFlow's convolution does not reverse its kernel. The filters are too short for an FFT to be faster.
  kernel = tf.constant(analysis[::-1, np.newaxis], x.dtype)
  reach = len(analysis) // 2
  x = tf.pad(x, [[0, 0], [reach, reach - num_bands + 1]])
  return tf.nn.conv1d(x[..., tf.newaxis], kernel, stride=num_bands, padding="VALID")


def join_bands(bands) -> tf.Tensor:
  """Sub-bands, float [B, T / N, N] -> audio, [B, T].

  The error of splitting and joining is at least 58 dB below the audio, for two to sixteen bands.
  """
  num_bands = bands.shape[-1]
  _, synthesis = filter_bank(num_bands)
  # Each output sample is a weighted sum of the band samples around it; upsampling would only add zeros.
  centre = len(synthesis) // 2
  kernel = np.zeros([2 * CONTEXT_STEPS + 1, num_bands, num_bands])  # [band time, band, phase of the output]
  for offset in range(-CONTEXT_STEPS, CONTEXT_STEPS + 1):
    for phase in range(num_bands):
      tap = centre + phase - num_bands * offset
      if 0 <= tap < len(synthesis):
        kernel[offset + CONTEXT_STEPS, :, phase] = num_bands * synthesis[tap]
  x = tf.nn.conv1d(bands, tf.constant(kernel, bands.dtype), stride=1, padding="SAME")
  return tf.reshape(x, [tf.shape(bands)[0], -1])
