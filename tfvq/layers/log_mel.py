"""Log-mel spectrograms of audio."""

import keras
import numpy as np
import tensorflow as tf

from tfvq.ops.precision import full_precision

LOWEST_HZ = 40.0  # lower edge of the first band; the upper edge of the last one is half the sample rate
_FLOOR = 1e-5  # of a band's magnitude: some 20 dB below the noise of a quiet studio


@keras.saving.register_keras_serializable("tfvq")
class LogMel(keras.layers.Layer):
  """Logarithms of the magnitudes of mel bands, in frames of `hop_samples`.

  The window of frame f has `window_samples` and is centred on the frame's own samples, f * hop .. (f + 1) * hop - 1.
  The Fourier transform is computed by matrix products, so that it runs on devices without an FFT.

  Args:
    num_bands: Number of mel bands from 40 Hz to half the sample rate, >= 1.
    hop_samples: Samples per frame, >= 1.
    window_samples: Length of the Hann window, even, >= `hop_samples`; None means 25 ms, or `hop_samples`
      if that is more.
    sample_rate_hz: Sample rate of the audio.
    **kwargs: As for `keras.layers.Layer`.

  Raises:
    ValueError: `window_samples` is odd, or less than `hop_samples`.

  Input shape:
    Audio, float [B, T] in -1..1, T a multiple of `hop_samples`.

  Output shape:
    Float [B, T / hop_samples, num_bands], from about -1.5 in silence to 2 in loud speech.

  Example:
    >>> LogMel(num_bands=80, hop_samples=128)(tf.zeros([2, 1280])).shape
    TensorShape([2, 10, 80])
  """

  def __init__(
    self,
    num_bands: int = 80,
    hop_samples: int = 64,
    window_samples: int | None = None,
    sample_rate_hz: int = 16_000,
    **kwargs,
  ):
    # Audio needs full precision, even if the networks compute in 16 bits.
    dtype = full_precision(keras.config.dtype_policy().variable_dtype)
    super().__init__(**{"dtype": dtype, **kwargs, "trainable": False})
    window_samples = window_samples or max(2 * (sample_rate_hz // 80), hop_samples + hop_samples % 2)
    if window_samples < hop_samples or window_samples % 2:
      raise ValueError(f"window_samples must be even and at least hop_samples={hop_samples}, not {window_samples}.")
    self.num_bands = num_bands
    self.hop_samples = hop_samples
    self.window_samples = window_samples
    self.sample_rate_hz = sample_rate_hz
    # A window is cut out of an odd number of whole hops, with the frame's own hop in the middle.
    self.reach = -(-(window_samples - hop_samples) // (2 * hop_samples))
    fft_size = 2 ** int(np.ceil(np.log2(window_samples)))
    # Distances of the window's samples from its middle: 0.5, 1.5, ...
    distance = np.arange(window_samples // 2) + 0.5
    window = 0.5 + 0.5 * np.cos(2 * np.pi * distance / window_samples)
    self._window = window / (2 * window.sum())
    self._quarter = fft_size // 4
    angle = 2 * np.pi * np.outer(np.arange(self._quarter) + 0.5, np.arange(fft_size // 2 + 1)) / fft_size
    self._cosines = np.cos(angle[:, ::2]), np.cos(angle[:, 1::2])
    self._sines = np.sin(angle[:, ::2]), np.sin(angle[:, 1::2])
    mel = tf.signal.linear_to_mel_weight_matrix(
      num_bands, fft_size // 2 + 1, sample_rate_hz, LOWEST_HZ, sample_rate_hz / 2
    )
    self._mel = np.concatenate([mel[::2], mel[1::2]])

  def call(self, audio):
    pieces = tf.reshape(audio, [tf.shape(audio)[0], -1, self.hop_samples])
    num_frames = tf.shape(pieces)[1]
    pieces = tf.pad(pieces, [[0, 0], [self.reach, self.reach], [0, 0]])
    frames = tf.concat([pieces[:, k : k + num_frames] for k in range(2 * self.reach + 1)], axis=-1)
    margin = (frames.shape[-1] - self.window_samples) // 2
    frames = tf.reshape(frames, [-1, frames.shape[-1]])[:, margin : margin + self.window_samples]
    mel = tf.matmul(self._magnitudes(frames), tf.constant(self._mel, audio.dtype))
    log_mel = tf.math.log(tf.maximum(mel, _FLOOR)) / 4 + 1.4
    return tf.reshape(log_mel, [tf.shape(audio)[0], num_frames, self.num_bands])

  def _magnitudes(self, frames):
    """Magnitudes of the spectrum, [N, window_samples] -> [N, bins], the even bins before the odd ones.

    Around the middle of the window the cosines are symmetric and the sines antisymmetric; around a quarter of the
    transform, each is one or the other, depending on whether the bin is even. Adding and subtracting mirrored samples
    first makes the matrix products eight times smaller.
    """
    half, quarter = self.window_samples // 2, self._quarter
    before, after = tf.reverse(frames[:, :half], [1]), frames[:, half:]
    window = tf.constant(self._window, frames.dtype)

    def folded(x):
      x *= window
      far = tf.reverse(tf.pad(x[:, quarter:], [[0, 0], [0, 2 * quarter - half]]), [1])
      return x[:, :quarter] + far, x[:, :quarter] - far

    def projected(parts, tables):
      return tf.concat([tf.matmul(x, tf.constant(y, x.dtype)) for x, y in zip(parts, tables, strict=True)], axis=-1)

    cosine = projected(folded(after + before), self._cosines)
    sine = projected(folded(after - before)[::-1], self._sines)
    return tf.sqrt(cosine**2 + sine**2 + 1e-12)

  def get_config(self):
    return {
      **super().get_config(),
      "num_bands": self.num_bands,
      "hop_samples": self.hop_samples,
      "window_samples": self.window_samples,
      "sample_rate_hz": self.sample_rate_hz,
    }
