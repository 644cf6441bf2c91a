"""Sub-bands of audio: a pseudo-quadrature mirror filter bank, critically sampled.

Reference: Nguyen, "Near-perfect-reconstruction pseudo-QMF banks", IEEE Trans. Signal Processing 42 (1994); used with an
autoregressive vocoder: arXiv 1909.01700 (DurIAN).
"""

import functools

import numpy as np
import tensorflow as tf

CONTEXT_STEPS = 8  # an audio sample depends on this many band samples before and after it

_KAISER_BETA = 9.0


@functools.cache
def filter_bank(num_bands: int) -> tuple[np.ndarray, np.ndarray]:
  """Impulse responses for analysis and synthesis, float64 [16 num_bands - 1, num_bands] each; num_bands >= 2."""
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
  """Splits audio, float [B, T], T a multiple of N = `num_bands` -> sub-bands, [B, T / N, N], lowest first."""
  analysis, _ = filter_bank(num_bands)
  # TensorFlow's convolutions do not reverse the kernel. The filters are so short that an FFT would not be faster.
  kernel = tf.constant(analysis[::-1, np.newaxis], x.dtype)
  reach = len(analysis) // 2
  x = tf.pad(x, [[0, 0], [reach, reach - num_bands + 1]])
  return tf.nn.conv1d(x[..., tf.newaxis], kernel, stride=num_bands, padding="VALID")


def join_bands(bands) -> tf.Tensor:
  """Joins sub-bands, float [B, T / N, N] -> audio, [B, T].

  For two to sixteen bands, the error of splitting and joining is at least 58 dB below the audio.
  """
  num_bands = bands.shape[-1]
  _, synthesis = filter_bank(num_bands)
  # Each output sample is a weighted sum of the band samples around it, so that no zeros need to be inserted.
  centre = len(synthesis) // 2
  kernel = np.zeros([2 * CONTEXT_STEPS + 1, num_bands, num_bands])  # [band time, band, phase of the output]
  for offset in range(-CONTEXT_STEPS, CONTEXT_STEPS + 1):
    for phase in range(num_bands):
      tap = centre + phase - num_bands * offset
      if 0 <= tap < len(synthesis):
        kernel[offset + CONTEXT_STEPS, :, phase] = num_bands * synthesis[tap]
  x = tf.nn.conv1d(bands, tf.constant(kernel, bands.dtype), stride=1, padding="SAME")
  return tf.reshape(x, [tf.shape(bands)[0], -1])
