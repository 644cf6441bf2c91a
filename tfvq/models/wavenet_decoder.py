"""The decoder of speech: a WaveNet conditioned on latents and a speaker."""

from typing import NamedTuple

import keras
import tensorflow as tf

from tfvq.models.autoregressive import Condition
from tfvq.models.decoder import Decoder
from tfvq.models.sampling import Generation, generation_start, noise_shape, sample_steps
from tfvq.models.serialization import deserialized_parts, serialized_parts
from tfvq.models.speech_networks import check_unknown_speakers, context_of, local_condition, num_speakers_of
from tfvq.ops.empty_batch import for_any_batch
from tfvq.ops.subbands import CONTEXT_STEPS
from tfvq.ops.values import check_values, outside


class PartState(NamedTuple):
  """What `WaveNetDecoder.sample_part` carries from one part of a recording to the next."""

  generation: Generation
  bands: tf.Tensor  # the last samples of the sub-bands, float32 [B, 2 CONTEXT_STEPS, num_bands]


@keras.saving.register_keras_serializable("tfvq")
class WaveNetDecoder(Decoder):
  """The distribution of audio given latents and a speaker.

  A recording can be drawn as a whole, by `sample`, or in parts, by `initial_state`, `sample_part` and `last_part`. The
  first and the last latents are repeated to fill the receptive field of the conditioner at the ends.

  Reference: arXiv 1711.00937, section 4.3.

  Args:
    conditioner: Keras model, (z, speaker) -> the WaveNet's local condition, float [B, F, E].
    wavenet: `tfvq.models.WaveNet` with `condition_dim` E and `audio_values`.
    hop_samples: Samples per frame.
    **kwargs: As for `keras.Model`.

  Raises:
    ValueError: The WaveNet has no `audio_values` or no local condition; or a condition has no speakers, or others.

  Example:
    >>> wavenet = WaveNet(CategoricalHead(256, hidden_units=8), channels=8, dilation_rates=(1, 2), condition_dim=8,
    ...                   audio_values=AudioValues())
    >>> decoder = WaveNetDecoder(conditioner(embedding_dim=4, num_speakers=2, condition_dim=8), wavenet)
    >>> z, condition = tf.zeros([2, 10, 4]), {"speaker": tf.constant([0, 1])}
    >>> audio = decoder.sample(z, gumbel_noise(0, decoder.noise_shape(2, 640)), condition)
    >>> audio.shape, decoder.log_prob(audio, z, condition).shape
    (TensorShape([2, 640]), TensorShape([2]))
  """

  discrete = True
  has_mode = False

  def __init__(self, conditioner, wavenet, hop_samples: int = 64, **kwargs):
    super().__init__(**kwargs)
    if wavenet.audio_values is None or "local" not in wavenet.conditions:
      raise ValueError(f"{wavenet.name} cannot decode speech: give it audio_values and a condition_dim.")
    self.conditioner = conditioner
    self.wavenet = wavenet
    self.hop_samples = hop_samples
    self.context_frames = context_of(conditioner)
    self.num_speakers = num_speakers_of(conditioner)

  @property
  def audio_values(self) -> keras.layers.Layer:
    """`tfvq.layers.AudioValues`: what the WaveNet models."""
    return self.wavenet.audio_values

  @property
  def num_bands(self) -> int:
    """Number of sub-bands of the audio."""
    return self.audio_values.num_bands

  @property
  def steps_per_frame(self) -> int:
    """Steps of the WaveNet per frame."""
    return self.hop_samples // self.num_bands

  @property
  def conditions(self):
    return {"speaker": Condition((), self.num_speakers)}

  def local_condition(self, z, speaker, training=False) -> tf.Tensor:
    """The WaveNet's local condition, without filling the receptive field at the ends.

    Args:
      z: Latents, float [B, F, ...].
      speaker: Integers [B].
      training: Whether the conditioner trains.

    Returns:
      Float [B, F, E].
    """
    z, speaker = tf.convert_to_tensor(z), tf.convert_to_tensor(speaker)
    check_values(speaker, self.num_speakers, f"Speakers of {self.name}")
    return local_condition(self.conditioner, z, speaker, training)

  def project(self, z, speaker) -> tf.Tensor:
    """What a condition adds to the WaveNet's layers in F frames, see `tfvq.models.WaveNet.project_condition`.

    Args:
      z: Latents of F + 2 `context_frames` frames, float [B, F + 2 context_frames, ...].
      speaker: Integers [B].
    """
    return self.wavenet.project_condition({"local": self._inside(self.local_condition(z, speaker))})

  def log_prob_and_mode(self, x, z, condition=None, training=False):
    local = self._inside(self.local_condition(self._with_context(z), self._speaker(condition), training))
    return self.log_prob_of_frames(x, local), None

  def log_prob_of_frames(self, audio, local, margin_frames: int = 0) -> tf.Tensor:
    """Log-likelihood in nats of the frames that are at least `margin_frames` from both ends.

    Args:
      audio: Float [B, F * hop_samples].
      local: `local_condition`, float [B, F, E].
      margin_frames: Frames at each end that are left out, and that the WaveNet does not see.

    Returns:
      Float [B].
    """
    margin_steps = margin_frames * self.steps_per_frame
    values = for_any_batch(self.audio_values, audio)[:, margin_steps : -margin_steps or None]
    return self.wavenet.log_prob(values, {"local": local[:, margin_frames : -margin_frames or None]})

  def noise_shape(self, batch_size: int, num_samples: int) -> tuple[int, ...]:
    """Shape of the noise that `sample` takes for audio of so many samples, see `tfvq.models.noise_shape`."""
    return noise_shape(self.wavenet, batch_size, num_samples // self.num_bands)

  def sample(self, z, noise, condition=None, temperature=1.0):
    state = self.initial_state(tf.shape(noise)[1])
    audio, state = self.sample_part(self._with_context(z), state, noise, condition, temperature)
    return tf.concat([audio, self.last_part(state)], axis=1)[:, self.latency_samples :]

  @property
  def latency_samples(self) -> int:
    """Delay of the audio of `sample_part`: samples depend on the sub-bands after them."""
    return CONTEXT_STEPS * self.num_bands

  def initial_state(self, batch_size: int) -> PartState:
    """The state before the first part."""
    bands = tf.zeros([batch_size, 2 * CONTEXT_STEPS, self.num_bands])
    return PartState(generation_start(self.wavenet, batch_size), bands)

  def sample_part(self, z, state: PartState, noise, condition, temperature=1.0, num_frames=None):
    """Draws the next F frames of a recording.

    Args:
      z: Latents of these frames and of `context_frames` on either side, float [B, F + 2 context_frames, ...].
      state: `initial_state`, or what this function returned before.
      noise: Gumbel noise, float [F * steps_per_frame, B, ...].
      condition: {"speaker": integers [B]}.
      temperature: As for `tfvq.models.sample`.
      num_frames: Number of frames after which the recording ends, 0..F; the audio after them is silent. F by default.

    Returns:
      `(audio float32 [B, F * hop_samples], PartState)`. The audio is `latency_samples` late.
    """
    projected = self.project(z, self._speaker(condition))
    values, generation = sample_steps(self.wavenet, state.generation, noise, projected, temperature)
    new_bands = self.audio_values.bands(tf.transpose(values, [1, 0, 2]))
    if num_frames is not None:
      is_in_recording = tf.range(tf.shape(new_bands)[1]) < num_frames * self.steps_per_frame
      new_bands = tf.where(is_in_recording[:, tf.newaxis], new_bands, 0.0)
    bands = tf.concat([state.bands, new_bands], axis=1)
    return self._joined(bands), PartState(generation, bands[:, -2 * CONTEXT_STEPS :])

  def last_part(self, state: PartState) -> tf.Tensor:
    """The audio that the latency has held back at the end of a recording, float32 [B, latency_samples]."""
    return self._joined(tf.pad(state.bands, [[0, 0], [0, CONTEXT_STEPS], [0, 0]]))

  def _speaker(self, condition):
    """The speakers of a condition; raises an error if it does not have exactly these."""
    if set(condition or {}) != {"speaker"}:
      raise ValueError(f"{self.name} has the condition 'speaker', but was given {sorted(condition or {})}.")
    return condition["speaker"]

  def _joined(self, bands):
    """Audio of sub-bands, without the context at the ends: [B, T + 2 CONTEXT_STEPS, N] -> [B, T N]."""
    return self.audio_values.join(bands)[:, self.latency_samples : -self.latency_samples]

  def _with_context(self, z):
    """Repeats the first and the last latents for the receptive field of the conditioner."""
    first, last = tf.repeat(z[:, :1], self.context_frames, axis=1), tf.repeat(z[:, -1:], self.context_frames, axis=1)
    return tf.concat([first, z, last], axis=1)

  def _inside(self, frames):
    """Frames without the context at both ends."""
    return frames[:, self.context_frames : -self.context_frames or None]

  def is_flagged(self, x, condition=None):
    return outside(self._speaker(condition), self.num_speakers)

  def check_flagged(self, share):
    check_unknown_speakers(share, self.num_speakers, self.name)

  def with_wavenet(self, wavenet) -> "WaveNetDecoder":
    """A decoder with another WaveNet of the same values and condition."""
    return WaveNetDecoder(self.conditioner, wavenet, self.hop_samples)

  def get_config(self):
    parts = serialized_parts(self, ("conditioner", "wavenet"))
    return {**super().get_config(), **parts, "hop_samples": self.hop_samples}

  @classmethod
  def from_config(cls, config):
    return cls(**deserialized_parts(config, ("conditioner", "wavenet")))
