"""Encodes and decodes speech of any length in parts of bounded memory."""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tfvq.models.sampling import generation_start, gumbel_noise, noise_shape, sample_steps
from tfvq.models.speech_vqvae import SpeechVQVAE
from tfvq.ops.loudness import frame_powers, gain_to_level
from tfvq.ops.subbands import CONTEXT_STEPS
from tfvq.ops.values import check_values

_PART_SECONDS = 10  # that are encoded at once


class SpeechCodec:
  """Encodes audio of any length, and draws speech from the decoder with a compiled loop.

  Args:
    model: The model.
    frames_per_part: Frames that are decoded at once.
    jit_compile: Whether XLA compiles the loop: many times as fast, after some seconds once per batch size.
  """

  def __init__(self, model: SpeechVQVAE, frames_per_part: int = 125, jit_compile: bool = True):
    self.model = model
    self.frames_per_part = frames_per_part
    self._sample_steps = tf.function(
      lambda start, noise, projected, temperature: sample_steps(model.decoder, start, noise, projected, temperature),
      jit_compile=jit_compile,
    )
    self._encode = tf.function(model.encode_inside, reduce_retracing=True)
    self._projected = tf.function(
      lambda codes, speaker: projected_condition(model, codes, speaker), reduce_retracing=True
    )

  @property
  def sample_rate_hz(self) -> int:
    """Sample rate of the audio."""
    return self.model.sample_rate_hz

  def gain_of(self, audio) -> float:
    """The factor that brings audio to the level that the model was trained on.

    Args:
      audio: Float32 [T] in -1..1 at `sample_rate_hz`, or a `tfvq.data.audio_files.AudioReader` at this rate, which is
        read in parts.

    Raises:
      ValueError: A reader gives audio of another sample rate.
    """
    rate_hz = self.sample_rate_hz
    reader = _as_reader(audio, rate_hz)
    starts = range(0, reader.num_samples, _PART_SECONDS * rate_hz)
    powers = [frame_powers(reader.read(start, start + _PART_SECONDS * rate_hz), rate_hz) for start in starts]
    return gain_to_level(np.concatenate(powers)) if powers else 1.0

  def encode(self, audio, gain: float = 1.0) -> np.ndarray:
    """Codes of audio, int32 [F] or [F, G], F = ceil(num_samples / hop_samples).

    The recording is taken to stand in silence, so that parts of any size have the codes of the whole.

    Args:
      audio: As for `gain_of`.
      gain: What it is multiplied by first.

    Raises:
      ValueError: A reader gives audio of another sample rate.
    """
    reader = _as_reader(audio, self.sample_rate_hz)
    hop_samples = self.model.hop_samples
    context = self.model.encoder_context_frames * hop_samples
    part_samples = _PART_SECONDS * self.sample_rate_hz // hop_samples * hop_samples
    codes = []
    for start in range(0, reader.num_samples, part_samples):
      stop = min(start + part_samples, -(-reader.num_samples // hop_samples) * hop_samples)
      begin, end = max(0, start - context), min(reader.num_samples, stop + context)
      audio = np.pad(gain * reader.read(begin, end), [begin - (start - context), stop + context - end])
      codes.append(self._encode(tf.constant(audio[np.newaxis]))[0].numpy())
    return np.concatenate(codes) if codes else np.zeros([0, *self.model.frame_shape], np.int32)

  def decode(self, codes, speaker, seed: int = 0, temperature=1.0) -> np.ndarray:
    """Speech from codes and speakers, float32 [B, F * hop_samples]; see `decode_parts`."""
    parts = list(self.decode_parts(codes, speaker, seed, temperature))
    return np.concatenate([np.zeros([len(codes), 0], np.float32), *parts], axis=1)

  def decode_parts(self, codes, speaker, seed: int = 0, temperature=1.0) -> Iterator[np.ndarray]:
    """Decodes in parts, float32 [B, T] each.

    Args:
      codes: Integers [B, F] or [B, F, G].
      speaker: Integers [B].
      seed: Seed of the noise.
      temperature: A scalar, or one for each band, lowest first.
    """
    model, codes = self.model, np.asarray(codes, np.int32)
    check_values(tf.constant(codes), model.quantizer.num_values, "Codes")
    check_values(tf.constant(speaker), model.spectral.num_speakers, "Speakers")
    batch_size, num_frames, *latents = codes.shape
    if not num_frames:
      return
    temperature = tf.broadcast_to(tf.cast(temperature, tf.float32), [model.decoder.head.num_variables])
    num_parts = -(-num_frames // self.frames_per_part)
    # Before the first frame and after the last there is more of them; every part has the shape that was compiled for.
    left_over = num_parts * self.frames_per_part - num_frames
    around = [
      (0, 0),
      (model.conditioner_context_frames, left_over + model.conditioner_context_frames),
      *[(0, 0)] * len(latents),
    ]
    filled = np.pad(codes, around, mode="edge")
    start = generation_start(model.decoder, batch_size)
    num_steps = self.frames_per_part * model.steps_per_frame
    bands = np.zeros([batch_size, CONTEXT_STEPS, model.audio_values.num_bands], np.float32)
    samples_left = num_frames * model.hop_samples
    for part in range(num_parts):
      noise = gumbel_noise(seed, noise_shape(model.decoder, batch_size, num_steps), part)
      first = part * self.frames_per_part
      window = filled[:, first : first + self.frames_per_part + 2 * model.conditioner_context_frames]
      projected = self._projected(tf.constant(window), tf.constant(speaker, tf.int32))
      values, start = self._sample_steps(start, noise, projected, temperature)
      new_bands = model.audio_values.bands(tf.transpose(values, [1, 0, 2])).numpy()
      # Samples near the end depend on bands to come: they are held back until those are there.
      bands = np.concatenate([bands, new_bands], axis=1)
      if part == num_parts - 1:
        bands = np.pad(bands, [(0, 0), (0, 2 * CONTEXT_STEPS), (0, 0)])
      audio = np.asarray(model.audio_values.join(bands))
      audio = audio[:, CONTEXT_STEPS * model.audio_values.num_bands : -CONTEXT_STEPS * model.audio_values.num_bands]
      bands = bands[:, -2 * CONTEXT_STEPS :]
      yield audio[:, :samples_left]
      samples_left -= audio.shape[1]


class _ArrayReader:
  """Audio in memory with the interface of a file reader."""

  def __init__(self, audio, sample_rate_hz):
    self._audio, self.sample_rate_hz = audio, sample_rate_hz
    self.num_samples = len(audio)

  def read(self, start, stop):
    return self._audio[start:stop]


def _as_reader(audio, sample_rate_hz):
  reader = audio if hasattr(audio, "read") else _ArrayReader(audio, sample_rate_hz)
  if reader.sample_rate_hz != sample_rate_hz:
    raise ValueError(f"The reader gives audio of {reader.sample_rate_hz} Hz; the model needs {sample_rate_hz} Hz.")
  return reader


def projected_condition(model: SpeechVQVAE, codes, speaker) -> tf.Tensor:
  """The decoder's projected condition for codes, without the context at the ends.

  Args:
    model: The model.
    codes: Integers [B, F + 2 conditioner_context_frames] or [B, F + 2 conditioner_context_frames, G].
    speaker: Integers [B].

  Returns:
    What `tfvq.models.WaveNet.project_condition` gives for F frames.
  """
  condition = model.condition(codes, speaker)[
    :, model.conditioner_context_frames : -model.conditioner_context_frames or None
  ]
  return model.decoder.project_condition({"local": condition})
