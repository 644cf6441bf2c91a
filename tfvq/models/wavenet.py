"""The WaveNet: the decoder of speech, the prior over its codes, or a model of audio."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfvq.layers.dilated_block import DilatedBlock
from tfvq.models.autoregressive import AutoregressiveModel, Condition
from tfvq.models.serialization import deserialized_parts, serialized_parts
from tfvq.ops.mu_law import compress, expand


class WaveNetState(NamedTuple):
  """The state of generation between two steps."""

  rings: tf.Tensor  # ring buffers of each layer's last dilation_rate inputs, concatenated, [sum of the rates, B, C]
  time: tf.Tensor  # number of steps done, int scalar


@keras.saving.register_keras_serializable("tfvq")
class WaveNet(AutoregressiveModel):
  """Autoregressive model of a sequence, with cached activations in generation.

  Reference: arXiv 1609.03499; as decoder and prior: arXiv 1711.00937, sections 4.3 and 3.3.
  Deviation: the head projects the skip connections of all layers at once; only the head orders the values of a step.

  Args:
    head: Output distribution: `tfvq.layers.CategoricalHead` or `tfvq.layers.LogisticMixtureHead`. Its `num_variables`
      is G, the number of values per step; its `num_values` is K, the number of values that each can have.
    channels: C, residual and skip channels, >= 1.
    dilation_rates: Dilation rates of the layers, such as (1, 2, 4, 8) * 2.
    ordinal: Whether neighbouring values have similar meanings, like those of audio, companded or not. If so, the
      network gets them as numbers, else by an embedding.
    condition_dim: E, channels of frames that the model is conditioned on, by the condition "local", float [B, F, E],
      where T is a multiple of F and each frame covers T / F steps. 0 for none.
    num_speakers: Number of speakers that the model is conditioned on, by the condition "speaker", integers [B] in
      0..num_speakers-1; 0 for none.
    audio_values: `tfvq.layers.AudioValues`, which converts audio to the model's values and back, to be saved with the
      model. None if the values are not audio, or if another model contains the layer.
    **kwargs: As for `keras.Model`.

  Input shape:
    x: integers [B, T, G]; or a pair (x, condition), see `AutoregressiveModel`. The condition may be None, except under
    a `tf.distribute` strategy: give x alone there.

  Output shape:
    Parameters of the output distribution, float [B, T, ...].

  Training behaviour:
    As for `AutoregressiveModel`.

  Raises:
    ValueError: An argument is out of its range, or a condition has wrong names or shapes.

  Example:
    >>> model = WaveNet(CategoricalHead(256, hidden_units=32), channels=16, dilation_rates=(1, 2, 4))
    >>> values = tf.zeros([2, 100, 1], tf.int32)
    >>> model.log_prob(values).shape
    TensorShape([2])
  """

  def __init__(
    self,
    head: keras.layers.Layer,
    channels: int = 64,
    dilation_rates: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512) * 2,
    ordinal: bool = True,
    condition_dim: int = 0,
    num_speakers: int = 0,
    audio_values: keras.layers.Layer | None = None,
    **kwargs,
  ):
    super().__init__(**kwargs)
    if not dilation_rates:
      raise ValueError("dilation_rates is empty: give one rate for each layer.")
    self.head = head
    self.channels = channels
    self.dilation_rates = tuple(dilation_rates)
    self.ordinal = ordinal
    self.condition_dim = condition_dim
    self.num_speakers = num_speakers
    self.audio_values = audio_values
    policy = self.dtype_policy
    if ordinal:
      self.embedding = keras.layers.Dense(channels, dtype=policy, name="embedding")
    else:
      # One table for all values of a step: value g uses rows g K .. (g + 1) K - 1.
      self.embedding = keras.layers.Embedding(
        head.num_variables * head.num_values, channels, dtype=policy, name="embedding"
      )
    self.blocks = [
      DilatedBlock(channels, rate, last=layer == len(dilation_rates) - 1, dtype=policy, name=f"block_{layer}")
      for layer, rate in enumerate(dilation_rates)
    ]
    num_gates = 2 * channels * len(dilation_rates)
    self.local_projection = (
      keras.layers.Dense(num_gates, use_bias=False, dtype=policy, name="local_projection") if condition_dim else None
    )
    self.speaker_embedding = (
      keras.layers.Embedding(num_speakers, num_gates, dtype=policy, name="speaker_embedding") if num_speakers else None
    )
    self.build()

  @property
  def value_shape(self):
    return (None, self.head.num_variables)

  @property
  def num_position_axes(self):
    return 1

  @property
  def conditions(self):
    local = {"local": Condition((None, self.condition_dim))} if self.condition_dim else {}
    speaker = {"speaker": Condition((), self.num_speakers)} if self.num_speakers else {}
    return {**local, **speaker}

  @property
  def receptive_field(self) -> int:
    """Size of the receptive field: the number of previous steps on which the distribution of a step depends."""
    return 1 + sum(self.dilation_rates)

  def build(self, input_shape=None):
    del input_shape
    self.embedding.build((None, 3 * self.head.num_variables) if self.ordinal else None)
    for block in self.blocks:
      block.build(None)
    if self.condition_dim:
      self.local_projection.build((None, self.condition_dim))
    if self.num_speakers:
      self.speaker_embedding.build()
    if not self.head.built:  # a head that is loaded with the model is built already
      self.head.build((None, len(self.blocks) * self.channels))
    self.built = True

  def features(self, x, condition=None, training=False):
    del training
    features = self._time_major_features(_time_major(x), tf.shape(x)[0], condition)
    return tf.transpose(tf.reshape(features, [tf.shape(x)[1], tf.shape(x)[0], features.shape[-1]]), [1, 0, 2])

  def log_prob_per_position(self, x, condition=None, training=False):
    del training
    batch_size, num_steps = tf.shape(x)[0], tf.shape(x)[1]
    x = _time_major(x)
    # Only the result is transposed; the features remain time-major.
    parameters = self.head(self._time_major_features(x, batch_size, condition), x)
    return tf.transpose(tf.reshape(self.head.log_prob(parameters, x), [num_steps, batch_size]))

  def _time_major_features(self, x, batch_size, condition):
    """Values [T * B, G] -> features [T * B, L C]."""
    x = self.embed(x)
    # After this shift by one step, layers may use the input at their own step.
    x = tf.concat([tf.zeros([batch_size, self.channels], x.dtype), x[:-batch_size]], axis=0)
    skips = []
    for block, projected in zip(self.blocks, self.per_layer(self.project_condition(condition)), strict=True):
      x, skip = block((x, projected[:, tf.newaxis]), batch_size=batch_size)
      skips.append(skip)
    return tf.concat(skips, axis=-1)

  def embed(self, x):
    """Embeds values for the first layer, integers [..., G] -> float [..., C]."""
    if not self.ordinal:
      rows = x + self.head.num_values * tf.range(self.head.num_variables)
      return tf.reduce_sum(self.embedding(rows), axis=-2)
    numbers = (tf.cast(x, self.compute_dtype) + 0.5) * (2 / self.head.num_values) - 1
    return self.embedding(tf.concat([numbers, expand(numbers), compress(numbers)], axis=-1))

  def project_condition(self, condition=None) -> tf.Tensor:
    """Projects a condition to the pre-activations of all L layers.

    Returns:
      Float [F or 1, B or 1, 2 C L]; zeros if there is no condition.
    """
    condition = self.checked_condition(condition)
    projected = tf.zeros([1, 1, 2 * self.channels * len(self.blocks)], self.compute_dtype)
    if self.num_speakers:
      projected += self.speaker_embedding(condition["speaker"])
    if self.condition_dim:
      local = tf.cast(condition["local"], self.compute_dtype)
      frames = self.local_projection(_time_major(local))
      projected += tf.reshape(frames, [tf.shape(local)[1], tf.shape(local)[0], projected.shape[-1]])
    return projected

  def per_layer(self, projected) -> list[tf.Tensor]:
    """Splits a projected condition into parts for each layer, [..., 2 C L] -> L tensors [..., 2 C]."""
    return tf.split(projected, len(self.blocks), axis=-1)

  def initial_state(self, batch_size: int) -> WaveNetState:
    """The state before the first step, zeros."""
    shape = [sum(self.dilation_rates), batch_size, self.channels]
    return WaveNetState(rings=tf.zeros(shape, self.compute_dtype), time=tf.constant(0))

  def step(self, x_before, state: WaveNetState, projected) -> tuple[tf.Tensor, WaveNetState]:
    """Computes one step of generation.

    Args:
      x_before: The values of the step before, integers [B, G]; ignored in the first step.
      state: The state before this step.
      projected: The frame of this step in the result of `project_condition`, float [B or 1, 2 C L].

    Returns:
      `(features [B, L C], state after this step)`.
    """
    rates = np.array(self.dilation_rates)
    places = (np.cumsum(rates) - rates + state.time % rates)[:, tf.newaxis]
    x = self.embed(x_before)
    x = tf.where(state.time > 0, x, tf.zeros_like(x))
    # The past inputs of all layers are known before the step, so that one gather and one scatter are enough.
    features, inputs = self.advance(x, tf.unstack(tf.gather_nd(state.rings, places)), projected)
    rings = tf.tensor_scatter_nd_update(state.rings, places, tf.stack(inputs))
    return features, WaveNetState(rings=rings, time=state.time + 1)

  def advance(self, x, pasts, projected):
    """Runs the layers for one step, without state.

    Args:
      x: Input of the first layer, float [B, C].
      pasts: For each layer, its input of `dilation_rate` steps before, float [B, C].
      projected: As for `step`.

    Returns:
      `(features [B, L C], list of the layers' inputs, [B, C] each)`.
    """
    inputs, skips = [], []
    for block, past, layer_projected in zip(self.blocks, pasts, self.per_layer(projected), strict=True):
      inputs.append(x)
      x, skip = block.step(x, past, layer_projected)
      skips.append(skip)
    return tf.concat(skips, axis=-1), inputs

  def get_config(self):
    return {
      **super().get_config(),
      **serialized_parts(self, _PARTS),
      "channels": self.channels,
      "dilation_rates": self.dilation_rates,
      "ordinal": self.ordinal,
      "condition_dim": self.condition_dim,
      "num_speakers": self.num_speakers,
    }

  @classmethod
  def from_config(cls, config):
    return cls(**deserialized_parts(config, _PARTS))


_PARTS = ("head", "audio_values")


def _time_major(x):
  """[B, T, C] -> [T * B, C]."""
  return tf.reshape(tf.transpose(x, [1, 0, 2]), [-1, x.shape[-1]])
