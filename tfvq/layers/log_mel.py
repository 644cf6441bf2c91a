"""Log-mel spectra of audio."""

import keras
import numpy as np
import tensorflow as tf

_FLOOR = 1e-5  # of a mel band's magnitude: some 20 dB below the noise of a quiet studio


@keras.saving.register_keras_serializable("tfvq")
class LogMel(keras.layers.Layer):
  """Logarithms of mel band magnitudes, a frame every `hop_samples`.

  The transform is one matrix product, so that it runs wherever products do. Frame f is centred on the samples that it
  stands for, f * hop .. (f + 1) * hop - 1, and looks at `window_samples` around them.

  Args:
    num_bands: Number of mel bands from 40 Hz to half the sample rate.
    hop_samples: Samples per frame.
    window_samples: Length of the Hann window, >= `hop_samples`.
    sample_rate_hz: Sample rate of the audio.
    **kwargs: As for `keras.layers.Layer`.

  Input shape:
    Audio, float [B, T] in -1..1, T a multiple of `hop_samples`.

  Output shape:
    Float [B, T / hop_samples, num_bands], about -1.5 in silence to 2 in loud speech.
  """

  def __init__(
    self,
    num_bands: int = 80,
    hop_samples: int = 64,
    window_samples: int = 400,
    sample_rate_hz: int = 16_000,
    **kwargs,
  ):
    super().__init__(**{**kwargs, "trainable": False})
    if window_samples < hop_samples:
      raise ValueError(f"window_samples ({window_samples}) must be at least hop_samples ({hop_samples}).")
    self.num_bands = num_bands
    self.hop_samples = hop_samples
    self.window_samples = window_samples
    self.sample_rate_hz = sample_rate_hz
    # A frame is made of whole hops, an odd number, so that its own hop is in the middle.
    self.reach = -(-(window_samples - hop_samples) // (2 * hop_samples))
    fft_size = 2 ** int(np.ceil(np.log2(window_samples)))
    frame_samples = (2 * self.reach + 1) * hop_samples
    margin = (frame_samples - window_samples) // 2
    window = np.zeros(frame_samples)
    window[margin : margin + window_samples] = 0.5 - 0.5 * np.cos(
      2 * np.pi * (np.arange(window_samples) + 0.5) / window_samples
    )
    angles = 2 * np.pi * np.outer(np.arange(frame_samples), np.arange(fft_size // 2 + 1)) / fft_size
    self._transform = window[:, np.newaxis] * np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    self._transform /= window.sum()
    mel = tf.signal.linear_to_mel_weight_matrix(num_bands, fft_size // 2 + 1, sample_rate_hz, 40.0, sample_rate_hz / 2)
    self._mel = mel.numpy()

  def call(self, audio):
    pieces = tf.reshape(audio, [tf.shape(audio)[0], -1, self.hop_samples])
    num_frames = tf.shape(pieces)[1]
    pieces = tf.pad(pieces, [[0, 0], [self.reach, self.reach], [0, 0]])
    frames = tf.concat([pieces[:, k : k + num_frames] for k in range(2 * self.reach + 1)], axis=-1)
    spectrum = tf.matmul(tf.reshape(frames, [-1, frames.shape[-1]]), tf.constant(self._transform, audio.dtype))
    cosine, sine = tf.split(spectrum, 2, axis=-1)
    mel = tf.matmul(tf.sqrt(cosine**2 + sine**2 + 1e-12), tf.constant(self._mel, audio.dtype))
    log_mel = tf.math.log(tf.maximum(mel, _FLOOR)) / 4 + 1.4
    return tf.reshape(log_mel, [tf.shape(audio)[0], num_frames, self.num_bands])

  def get_config(self):
    return {
      **super().get_config(),
      "num_bands": self.num_bands,
      "hop_samples": self.hop_samples,
      "window_samples": self.window_samples,
      "sample_rate_hz": self.sample_rate_hz,
    }
