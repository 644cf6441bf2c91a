"""Encodes speech to codes and decodes them, as a whole or as a stream, in parts of bounded memory."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfvq.models.sampling import gumbel_noise
from tfvq.models.speech_streams import DecoderStream, EncoderStream, checked_samples
from tfvq.models.speech_vqvae import SpeechVQVAE
from tfvq.ops.loudness import frame_powers, gain_to_level


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
    return gain_to_level(frame_powers(checked_samples(samples), self.sample_rate_hz))

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

  def encoder(self, batch_size: int | None = None) -> EncoderStream:
    """Starts a stream from samples to codes, of one recording, or of a batch of recordings."""
    return EncoderStream(self.model, self._encode, () if batch_size is None else (batch_size,))

  def decoder(
    self,
    speaker: str | int | Sequence = 0,
    seed: int = 0,
    temperature=None,
    noise: Callable[[int], np.ndarray] | None = None,
  ) -> DecoderStream:
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


class _Noise:
  """Gumbel noise of a seed, one part after another."""

  def __init__(self, seed, shape):
    self._seed, self._shape, self._part = seed, shape, -1

  def __call__(self, num_steps):
    self._part += 1
    return gumbel_noise(self._seed, [num_steps, *self._shape], self._part).numpy()
