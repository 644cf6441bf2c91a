"""Streams from samples to codes and from codes to speech, of a recording or of a batch of recordings."""

import numpy as np
import tensorflow as tf

_PART_SECONDS = 10  # that are encoded at once


class EncoderStream:
  """A stream from samples to codes; made by `SpeechCodec.encoder`."""

  def __init__(self, model, encode, batch_shape):
    self._encode = encode
    self._hop_samples, self._frame_shape, self._batch_shape = model.hop_samples, model.frame_shape, batch_shape
    self._part_samples = _PART_SECONDS * model.sample_rate_hz // self._hop_samples * self._hop_samples
    self._context_samples = model.encoder_context_frames * self._hop_samples
    # Silence precedes the first sample and follows the last one.
    self._pending = np.zeros([*batch_shape, self._context_samples], np.float32)
    self._num_samples = self._num_frames = 0
    self.time_axis = len(batch_shape)

  def push(self, samples) -> np.ndarray:
    """Takes the next samples, float [T] or [B, T] in -1..1; returns the codes that they complete, int32 [F, ...].

    Raises:
      ValueError: The samples are not finite, or have another shape; the stream is unchanged.
    """
    samples = checked_samples(samples, self._batch_shape)
    self._num_samples += samples.shape[-1]
    self._pending = np.concatenate([self._pending, samples], axis=-1)
    codes = [self._no_codes()]
    window_samples = self._part_samples + 2 * self._context_samples
    while self._pending.shape[-1] >= window_samples:
      codes.append(self._codes_of(self._pending[..., :window_samples]))
      self._pending = self._pending[..., self._part_samples :]
    return np.concatenate(codes, axis=self.time_axis)

  def finish(self) -> np.ndarray:
    """Ends the stream; returns the remaining codes, int32 [F, *frame_shape] or [B, F, *frame_shape]."""
    num_frames_left = -(-self._num_samples // self._hop_samples) - self._num_frames
    if not num_frames_left:
      return self._no_codes()
    num_missing = num_frames_left * self._hop_samples + 2 * self._context_samples - self._pending.shape[-1]
    return self._codes_of(np.pad(self._pending, [*[(0, 0)] * self.time_axis, (0, num_missing)]))

  def _no_codes(self):
    return np.zeros([*self._batch_shape, 0, *self._frame_shape], np.int32)

  def _codes_of(self, window):
    codes = self._encode(tf.constant(window.reshape(-1, window.shape[-1]))).numpy()
    self._num_frames += codes.shape[1]
    return codes.reshape(*self._batch_shape, *codes.shape[1:])


class DecoderStream:
  """A stream from codes to speech; made by `SpeechCodec.decoder`."""

  def __init__(self, model, decode_part, frames_per_part, speakers, batch_shape, temperature, noise):
    self._model, self._decode_part, self._frames_per_part = model, decode_part, frames_per_part
    self._condition = {"speaker": tf.constant(speakers)}
    self._batch_shape = batch_shape
    self._temperature, self._noise = tf.constant(temperature), noise
    self._state = model.decoder.initial_state(len(speakers))
    self._pending = None  # codes of frames that are not decoded yet and of the context before them, [B, F, ...]
    self._num_frames = self._num_frames_done = 0
    self._num_samples_late = model.decoder.latency_samples

  def push(self, codes) -> np.ndarray:
    """Takes the next codes, integers [F, *frame_shape] or [B, F, *frame_shape].

    Returns:
      The speech that they complete, float32 [T] or [B, T], mostly in -1..1.

    Raises:
      ValueError: The codes have another shape, are not integers, or not in 0..K-1; the stream is unchanged.
    """
    codes = self._checked_codes(codes)
    if not codes.shape[1]:
      return self._no_speech()
    if self._pending is None:
      # The first codes are repeated to fill the receptive field before them.
      self._pending = np.repeat(codes[:, :1], self._model.decoder.context_frames, axis=1)
    self._num_frames += codes.shape[1]
    self._pending = np.concatenate([self._pending, codes], axis=1)
    window_frames = self._frames_per_part + 2 * self._model.decoder.context_frames
    parts = [self._no_speech()]
    while self._pending.shape[1] >= window_frames:
      parts.append(self._next_part(self._frames_per_part))
    return np.concatenate(parts, axis=-1)

  def finish(self) -> np.ndarray:
    """Ends the stream; returns the remaining speech, float32 [T] or [B, T]."""
    if not self._num_frames:
      return self._no_speech()
    num_samples_left = (self._num_frames - self._num_frames_done) * self._model.hop_samples
    num_samples_left += self._model.decoder.latency_samples - self._num_samples_late
    # Every part has the shape that was compiled.
    num_missing = self._frames_per_part + 2 * self._model.decoder.context_frames
    self._pending = np.concatenate([self._pending, np.repeat(self._pending[:, -1:], num_missing, axis=1)], axis=1)
    parts = []
    while self._num_frames_done < self._num_frames:
      parts.append(self._next_part(min(self._frames_per_part, self._num_frames - self._num_frames_done)))
    parts.append(self._in_time(self._model.decoder.last_part(self._state)))
    return np.concatenate(parts, axis=-1)[..., :num_samples_left]

  def _next_part(self, num_frames):
    """Decodes a part, of which `num_frames` frames are in the recording."""
    decoder, frames = self._model.decoder, self._frames_per_part
    window = tf.constant(self._pending[:, : frames + 2 * decoder.context_frames])
    noise = np.asarray(self._noise(frames * decoder.steps_per_frame), np.float32)
    noise = tf.constant(noise.reshape(len(noise), len(window), *noise.shape[1 + len(self._batch_shape) :]))
    audio, self._state = self._decode_part(
      window, self._state, noise, self._condition, self._temperature, tf.constant(num_frames)
    )
    self._pending = self._pending[:, frames:]
    self._num_frames_done += num_frames
    return self._in_time(audio)

  def _in_time(self, audio):
    """Audio without what precedes the recording, because the decoder is late."""
    num_dropped = min(self._num_samples_late, audio.shape[1])
    self._num_samples_late -= num_dropped
    return audio.numpy()[:, num_dropped:].reshape(*self._batch_shape, -1)

  def _no_speech(self):
    return np.zeros([*self._batch_shape, 0], np.float32)

  def _checked_codes(self, codes):
    """Codes as int32 [B, F, ...]."""
    codes = np.asarray(codes)
    frame_shape = self._model.frame_shape
    # Codes of a residual quantiser may have fewer levels.
    if codes.ndim != len(self._batch_shape) + 1 + len(frame_shape) or codes.shape[: len(self._batch_shape)] != (
      self._batch_shape
    ):
      wanted = ", ".join(map(str, [*self._batch_shape, "frames", *frame_shape]))
      raise ValueError(f"Codes have shape {list(codes.shape)}; this model needs [{wanted}].")
    if codes.size and not np.issubdtype(codes.dtype, np.integer):
      raise ValueError(f"Codes must be integers, but are of type {codes.dtype}.")
    codes = codes.astype(np.int32)
    self._model.quantizer.check_codes(tf.constant(codes))
    return codes if self._batch_shape else codes[np.newaxis]


def checked_samples(samples, batch_shape=()):
  """Samples as float32 [*batch_shape, T]; raises a ValueError if they have another shape or are not finite."""
  with np.errstate(over="ignore"):
    samples = np.asarray(samples, np.float32)
  if samples.ndim != len(batch_shape) + 1 or samples.shape[:-1] != batch_shape:
    wanted = ", ".join(map(str, [*batch_shape, "samples"]))
    raise ValueError(f"Samples have shape {list(samples.shape)}; give [{wanted}].")
  if not np.isfinite(samples).all():
    raise ValueError("Samples must be finite, but some are NaN or infinite.")
  return samples
