"""Encodes speech to codes and decodes them, as a whole or as a stream, in parts of bounded memory."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfvq.models.sampling import gumbel_noise
from tfvq.models.speech_vqvae import SpeechVQVAE
from tfvq.ops.loudness import frame_powers, gain_to_level

_PART_SECONDS = 10  # that are encoded at once


class SpeechCodec:
  """Encodes speech to codes, and decodes codes to speech.

  It has the interface of the codec for devices, `export.device.SpeechCodec`.

  Args:
    model: The model.
    speakers: Names of the speakers; by default they have numbers only.
    temperature: Default temperature of the decoder, one value or one for each band.
    frames_per_part: Number of frames that are decoded at once.
    jit_compile: Whether XLA compiles the decoder: many times as fast, after some seconds once for each batch size.
  """

  def __init__(
    self,
    model: SpeechVQVAE,
    speakers: Sequence[str] = (),
    temperature=1.0,
    frames_per_part: int = 125,
    jit_compile: bool = True,
  ):
    self.model = model
    self.speakers = list(speakers)
    self.temperature = temperature
    self.frames_per_part = frames_per_part
    self._encode = tf.function(model.encode_inside, reduce_retracing=True)
    self._decode_part = tf.function(
      lambda codes, *arguments: model.decoder.sample_part(model.quantizer.decode(codes), *arguments),
      jit_compile=jit_compile,
    )

  @property
  def sample_rate_hz(self) -> int:
    """Sample rate of the audio."""
    return self.model.sample_rate_hz

  @property
  def hop_samples(self) -> int:
    """Samples per frame."""
    return self.model.hop_samples

  @property
  def frame_shape(self) -> tuple[int, ...]:
    """Shape of a frame's codes, () if there is one."""
    return self.model.frame_shape

  @property
  def num_values(self):
    """K: codes are 0..K-1; one K for all positions of a frame, or one for each."""
    return self.model.quantizer.num_values

  def gain_of(self, samples) -> float:
    """The factor that brings speech, float [T], to the level that the model was trained on; 1 for silence.

    Raises:
      ValueError: The samples are not finite, or have more than one dimension.
    """
    return gain_to_level(frame_powers(_checked_samples(samples), self.sample_rate_hz))

  def encode(self, samples) -> np.ndarray:
    """Codes of speech.

    Silence precedes and follows a recording. Codes are best at the level that the model was trained on: multiply the
    samples by `gain_of` first.

    Args:
      samples: Float [T] in -1..1, or a batch [B, T].

    Returns:
      int32 [F, *frame_shape] or [B, F, *frame_shape], F = ceil(T / hop_samples).

    Raises:
      ValueError: The samples are not finite, or have another number of dimensions.
    """
    stream = self.encoder(np.shape(samples)[0] if np.ndim(samples) == 2 else None)
    return np.concatenate([stream.push(samples), stream.finish()], axis=stream.time_axis)

  def decode(self, codes, speaker: str | int | Sequence = 0, seed: int = 0, temperature=None) -> np.ndarray:
    """Speech from codes.

    Args:
      codes: Integers [F, *frame_shape], or a batch [B, F, *frame_shape] with a sequence of B speakers.
      speaker: As for `decoder`.
      seed: As for `decoder`.
      temperature: As for `decoder`.

    Returns:
      Float32 [F * hop_samples] or [B, F * hop_samples].

    Raises:
      ValueError: As for `decoder`, and for `DecoderStream.push`.
    """
    stream = self.decoder(speaker, seed, temperature)
    return np.concatenate([stream.push(codes), stream.finish()], axis=-1)

  def encoder(self, batch_size: int | None = None) -> "EncoderStream":
    """Starts a stream from samples to codes, of one recording, or of a batch of recordings."""
    return EncoderStream(self.model, self._encode, () if batch_size is None else (batch_size,))

  def decoder(
    self,
    speaker: str | int | Sequence = 0,
    seed: int = 0,
    temperature=None,
    noise: Callable[[int], np.ndarray] | None = None,
  ) -> "DecoderStream":
    """Starts a stream from codes to speech.

    Args:
      speaker: Name or number of the speaker; or a sequence of B of them, for a batch of recordings.
      seed: Seed of the noise, zero or more; the same seed gives the same speech.
      temperature: One number, or one for each band, zero or more; the codec's own by default.
      noise: Replaces the noise of the seed: a function of a number of steps that returns Gumbel noise for the next
        ones, float32 [steps, *noise_shape] or [steps, B, *noise_shape].

    Raises:
      ValueError: A speaker is unknown, the seed is negative, or the temperature has a wrong shape or value.
    """
    model = self.model
    numbers = np.array([self._number_of(name) for name in np.ravel(np.asarray(speaker, object))], np.int32)
    if seed < 0:
      raise ValueError(f"The seed is {seed}; give zero or a positive number.")
    num_bands = model.decoder.num_bands
    temperature = np.asarray(self.temperature if temperature is None else temperature, np.float32)
    if temperature.shape not in ((), (1,), (num_bands,)):
      raise ValueError(
        f"temperature has shape {temperature.shape}; give one number, or one for each of {num_bands} bands."
      )
    if not np.all((temperature >= 0) & (temperature < np.inf)):
      raise ValueError(f"The temperature must be zero or more and finite, but is {temperature.tolist()}.")
    if noise is None:
      noise = _Noise(seed, [*np.shape(speaker), *model.decoder.wavenet.head.noise_shape])
    temperature = np.broadcast_to(temperature, [num_bands])
    return DecoderStream(model, self._decode_part, self.frames_per_part, numbers, np.shape(speaker), temperature, noise)

  def _number_of(self, speaker):
    if speaker in self.speakers:
      return self.speakers.index(speaker)
    num_speakers = self.model.decoder.num_speakers
    if isinstance(speaker, str) or not 0 <= speaker < num_speakers:
      choice = ", ".join([*self.speakers, f"0..{num_speakers - 1}"])
      raise ValueError(f"The model has no speaker {speaker!r}; choose one of {choice}.")
    return speaker


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
    samples = _checked_samples(samples, self._batch_shape)
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


class _Noise:
  """Gumbel noise of a seed, one part after another."""

  def __init__(self, seed, shape):
    self._seed, self._shape, self._part = seed, shape, -1

  def __call__(self, num_steps):
    self._part += 1
    return gumbel_noise(self._seed, [num_steps, *self._shape], self._part).numpy()


def _checked_samples(samples, batch_shape=()):
  """Samples as float32 [*batch_shape, T]; raises a ValueError if they have another shape or are not finite."""
  with np.errstate(over="ignore"):
    samples = np.asarray(samples, np.float32)
  if samples.ndim != len(batch_shape) + 1 or samples.shape[:-1] != batch_shape:
    wanted = ", ".join(map(str, [*batch_shape, "samples"]))
    raise ValueError(f"Samples have shape {list(samples.shape)}; give [{wanted}].")
  if not np.isfinite(samples).all():
    raise ValueError("Samples must be finite, but some are NaN or infinite.")
  return samples
