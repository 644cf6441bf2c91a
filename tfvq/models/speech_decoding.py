"""Speech from codes, part by part: the length is bounded by neither memory nor the compiler."""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from tfvq.models.sampling import continue_sequence, gumbel_noise, sequence_start
from tfvq.models.speech_vqvae import SpeechVQVAE

_CONTEXT_FRAMES = 3  # that the conditioner sees to either side
_CONTEXT_STEPS = 8  # band samples that a synthesised sample depends on, to either side


class SpeechDecoder:
  """Draws speech from a model's decoder, with a compiled loop.

  Args:
    model: The model.
    frames_per_part: Codes that are decoded at once.
    jit_compile: Whether XLA compiles the loop: many times as fast, after some seconds once per batch size.
  """

  def __init__(self, model: SpeechVQVAE, frames_per_part: int = 125, jit_compile: bool = True):
    self.model = model
    self.frames_per_part = frames_per_part
    self._continue = tf.function(
      lambda start, noise, shares, temperature: continue_sequence(model.decoder, start, noise, shares, temperature),
      jit_compile=jit_compile,
    )
    self._shares = tf.function(lambda codes, speaker: self._project(codes, speaker), reduce_retracing=True)

  def decode(self, codes, speaker, seed: int = 0, temperature=1.0) -> np.ndarray:
    """Speech from codes, int32 [B, F] and speakers [B] -> float32 [B, F * hop_samples]; see `parts`."""
    return np.concatenate(list(self.parts(codes, speaker, seed, temperature)), axis=1)

  def parts(self, codes, speaker, seed: int = 0, temperature=1.0) -> Iterator[np.ndarray]:
    """The same part by part, float32 [B, T] each.

    Args:
      codes: Integers [B, F].
      speaker: Integers [B].
      seed: Seed of the noise.
      temperature: A scalar, or one for each band, lowest first.
    """
    model, codes = self.model, np.asarray(codes, np.int32)
    batch_size, num_frames = codes.shape
    temperature = tf.broadcast_to(tf.cast(temperature, tf.float32), [model.decoder.head.num_variables])
    num_parts = -(-num_frames // self.frames_per_part)
    # The last part is filled up with its last code, so that every part has the shape that was compiled for.
    filled = np.pad(codes, [(0, 0), (0, num_parts * self.frames_per_part - num_frames)], mode="edge")
    start = sequence_start(model.decoder, batch_size)
    num_steps = self.frames_per_part * model.steps_per_frame
    bands = np.zeros([batch_size, _CONTEXT_STEPS, model.audio_values.num_bands], np.float32)
    samples_left = num_frames * model.hop_samples
    for part in range(num_parts):
      noise = gumbel_noise(seed, [num_steps, batch_size, *model.decoder.head.noise_shape], part)
      shares = self._shares_of(filled, speaker, part * self.frames_per_part)
      values, start = self._continue(start, noise, shares, temperature)
      new_bands = model.audio_values.bands(tf.transpose(values, [1, 0, 2])).numpy()
      # Samples near the end depend on bands to come: they are held back until those are there.
      bands = np.concatenate([bands, new_bands], axis=1)
      if part == num_parts - 1:
        bands = np.pad(bands, [(0, 0), (0, 2 * _CONTEXT_STEPS), (0, 0)])
      audio = model.audio_values.join(bands).numpy()
      audio = audio[:, _CONTEXT_STEPS * model.audio_values.num_bands : -_CONTEXT_STEPS * model.audio_values.num_bands]
      bands = bands[:, -2 * _CONTEXT_STEPS :]
      yield audio[:, :samples_left]
      samples_left -= audio.shape[1]

  def _shares_of(self, codes, speaker, first_frame):
    """The condition's shares of one part, from its codes and some to either side."""
    begin = max(0, first_frame - _CONTEXT_FRAMES)
    window = codes[:, begin : first_frame + self.frames_per_part + _CONTEXT_FRAMES]
    shares = self._shares(tf.constant(window), tf.constant(speaker, tf.int32))
    inside = slice(first_frame - begin, first_frame - begin + self.frames_per_part)
    return [share[inside] for share in shares]

  def _project(self, codes, speaker):
    return self.model.decoder.project_condition({"local": self.model.condition(codes, speaker)})
