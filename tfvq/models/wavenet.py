"""The WaveNet: the decoder of speech, the prior over its codes, and a model of audio by itself."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfvq.layers.dilated_block import DilatedBlock
from tfvq.models.likelihood_model import LikelihoodModel
from tfvq.ops.mu_law import compress, expand
from tfvq.ops.values import check_values, outside


class WaveNetState(NamedTuple):
  """What generation carries from step to step."""

  rings: tf.Tensor  # for each layer its last dilation_rate inputs, one layer after another, [sum of the rates, B, C]
  time: tf.Tensor  # steps done, int scalar


@keras.saving.register_keras_serializable("tfvq")
class WaveNet(LikelihoodModel):
  """Autoregressive model of a sequence, with cached generation.

  Reference: arXiv 1609.03499; as decoder and prior: arXiv 1711.00937, sections 4.3 and 3.3.
  Deviation: skip connections of all layers are projected at once, in the head; values sharing a step are ordered in
  the head only.

  Args:
    head: Output distribution: `tfvq.layers.CategoricalHead` or `tfvq.layers.LogisticMixtureHead`. Its `num_variables`
      G is the number of values per step, its `num_values` K that of what each can be.
    channels: C, residual and skip channels.
    dilation_rates: One for each layer, such as (1, 2, 4, 8) * 2.
    ordinal: Whether neighbouring values mean similar things, as audio does, companded or not; they then enter as
      numbers, else by an embedding.
    condition_dim: E of the local condition; 0 for none.
    num_speakers: Number of speakers of the global condition; 0 for none.
    audio_values: `tfvq.layers.AudioValues`, saved with the model: what turns audio into its values and back; None where
      its values are not audio, or another model holds the layer.
    **kwargs: As for `keras.Model`.

  Input shape:
    x: integers [B, T, G]; or a pair (x, condition), the condition a dict of what the model is conditioned on: "local",
    float [B, F, E] with T a multiple of F, each of its frames holding for T / F steps; "speaker", integers [B].
    The condition may be None, but not under a `tf.distribute` strategy, which takes x alone.

  Output shape:
    Parameters of the output distribution, float [B, T, ...].

  Training behaviour:
    `compile(optimizer)` and `fit` on `x` or `((x, condition),)` minimise the negative log-likelihood in nats per
    value; the metric `bits_per_value` is the same in bits.

  Raises:
    ValueError: An argument is out of its range, or a condition does not suit.

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
      raise ValueError("dilation_rates must name one layer or more.")
    self.head = head
    self.channels = channels
    self.dilation_rates = tuple(dilation_rates)
    self.ordinal = ordinal
    self.condition_dim = condition_dim
    self.num_speakers = num_speakers
    self.audio_values = audio_values
    policy = self.dtype_policy
    if ordinal:
      self.embedding = keras.layers.Dense(channels, dtype=policy)
    else:
      # One table for all values of a step: value g uses rows g K .. (g + 1) K - 1.
      self.embedding = keras.layers.Embedding(head.num_variables * head.num_values, channels, dtype=policy)
    self.blocks = [
      DilatedBlock(channels, rate, last=layer == len(dilation_rates) - 1, dtype=policy)
      for layer, rate in enumerate(dilation_rates)
    ]
    num_gates = 2 * channels * len(dilation_rates)
    self.local_projection = keras.layers.Dense(num_gates, use_bias=False, dtype=policy) if condition_dim else None
    self.speaker_embedding = keras.layers.Embedding(num_speakers, num_gates, dtype=policy) if num_speakers else None
    self._bits_per_value = keras.metrics.Mean(name="bits_per_value")
    self.build()

  @property
  def receptive_field(self) -> int:
    """Number of steps, the present one not among them, on which a step's distribution depends."""
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
    if not self.head.built:  # it is where the model is being loaded
      self.head.build((None, len(self.blocks) * self.channels))
    self.built = True

  def call(self, inputs, training=False):
    del training
    x, condition = _unpack(inputs)
    batch_size, num_steps = tf.shape(x)[0], tf.shape(x)[1]
    x = _time_major(x)
    parameters = self.head(self.features(x, batch_size, condition), x)
    parameters = tf.reshape(parameters, [num_steps, batch_size, *parameters.shape[1:]])
    return tf.einsum("tb...->bt...", parameters)

  def log_prob(self, x, condition=None) -> tf.Tensor:
    """Log-likelihood in nats, integers [B, T, G] -> float [B]."""
    return tf.reduce_sum(self.log_prob_per_step(x, condition), axis=1)

  def log_prob_per_step(self, x, condition=None) -> tf.Tensor:
    """Log-likelihood of each step given those before it in nats, integers [B, T, G] -> float [B, T]."""
    if self.num_speakers and condition and condition.get("speaker") is not None:
      check_values(tf.convert_to_tensor(condition["speaker"]), self.num_speakers, f"Speakers of {self.name}")
    x = tf.convert_to_tensor(x)
    check_values(x, self.head.num_values, f"Values of {self.name}")
    batch_size, num_steps = tf.shape(x)[0], tf.shape(x)[1]
    x = _time_major(x)
    parameters = self.head(self.features(x, batch_size, condition), x)
    log_prob = self.head.log_prob(parameters, x)
    return tf.transpose(tf.reshape(log_prob, [num_steps, batch_size]))

  def features(self, x, batch_size, condition=None):
    """What the network says of each step given those before it, time-major integers [T B, G] -> float [T B, L C]."""
    x = self.embed(x)
    # From here on a step may look at itself: the input has moved on by one step.
    x = tf.concat([tf.zeros([batch_size, self.channels], x.dtype), x[:-batch_size]], axis=0)
    skips = []
    for block, share in zip(self.blocks, self.project_condition(condition), strict=True):
      x, skip = block((x, share[:, tf.newaxis]), batch_size=batch_size)
      skips.append(skip)
    return tf.concat(skips, axis=-1)

  def embed(self, x):
    """What the values of a step are to the first layer, integers [..., G] -> float [..., C]."""
    if not self.ordinal:
      rows = x + self.head.num_values * tf.range(self.head.num_variables)
      return tf.reduce_sum(self.embedding(rows), axis=-2)
    numbers = (tf.cast(x, self.compute_dtype) + 0.5) * (2 / self.head.num_values) - 1
    return self.embedding(tf.concat([numbers, expand(numbers), compress(numbers)], axis=-1))

  def project_condition(self, condition) -> list[tf.Tensor]:
    """The condition's share of each layer's pre-activations, float [F or 1, B or 1, 2C]; zeros if there is none."""
    condition = condition or {}
    needed = {"local": bool(self.condition_dim), "speaker": bool(self.num_speakers)}
    given = {key: condition.get(key) is not None for key in needed}
    if needed != given:
      names = [key for key, value in needed.items() if value]
      raise ValueError(f"{self.name} is to be conditioned on {' and '.join(names) or 'nothing'}.")
    share = tf.zeros([1, 1, 2 * self.channels * len(self.blocks)], self.compute_dtype)
    if self.num_speakers:
      share += self.speaker_embedding(condition["speaker"])
    if self.condition_dim:
      local = tf.cast(condition["local"], self.compute_dtype)
      frames = self.local_projection(_time_major(local))
      share += tf.reshape(frames, [tf.shape(local)[1], tf.shape(local)[0], share.shape[-1]])
    return tf.split(share, len(self.blocks), axis=-1)

  def initial_state(self, batch_size: int) -> WaveNetState:
    """The state before the first step."""
    shape = [sum(self.dilation_rates), batch_size, self.channels]
    return WaveNetState(rings=tf.zeros(shape, self.compute_dtype), time=tf.constant(0))

  def step(self, x_before, state: WaveNetState, shares) -> tuple[tf.Tensor, WaveNetState]:
    """One step of generation.

    Args:
      x_before: The values of the step before, integers [B, G]; not looked at in the first step.
      state: The state before this step.
      shares: For each layer the condition's share at this step, float [B or 1, 2C]: a frame of `project_condition`.

    Returns:
      `(features [B, L C], state after this step)`; `head` turns the features into a distribution.
    """
    rates = np.array(self.dilation_rates)
    places = (np.cumsum(rates) - rates + state.time % rates)[:, tf.newaxis]
    x = self.embed(x_before)
    x = tf.where(state.time > 0, x, tf.zeros_like(x))
    # All layers' pasts are known before the step begins: one gather and one scatter serve them all.
    features, inputs = self.advance(x, tf.unstack(tf.gather_nd(state.rings, places)), shares)
    rings = tf.tensor_scatter_nd_update(state.rings, places, tf.stack(inputs))
    return features, WaveNetState(rings=rings, time=state.time + 1)

  def advance(self, x, pasts, shares):
    """The layers' part of a step: x [B, C], for each layer its past and its share -> (features, each layer's input)."""
    inputs, skips = [], []
    for block, past, share in zip(self.blocks, pasts, shares, strict=True):
      inputs.append(x)
      x, skip = block.step(x, past, share)
      skips.append(skip)
    return tf.concat(skips, axis=-1), inputs

  def example_losses(self, x, y_pred, training):
    """Negative log-likelihood of each example in nats per value, float [B]."""
    del training
    x, _ = _unpack(x)
    nll_nats = -tf.reduce_mean(self.head.log_prob(y_pred, x), axis=1) / self.head.num_variables
    self._bits_per_value.update_state(nll_nats / np.log(2))
    return nll_nats

  def is_flagged(self, x):
    x, condition = _unpack(x)
    flagged = outside(x, self.head.num_values)
    return flagged | outside(condition["speaker"], self.num_speakers) if self.num_speakers else flagged

  def check_flagged(self, share):
    if share:
      speakers = f", or a speaker outside 0..{self.num_speakers - 1}" if self.num_speakers else ""
      raise ValueError(
        f"{share:.1%} of the examples for {self.name} have a value outside 0..{self.head.num_values - 1}{speakers}."
      )

  def input_signature(self):
    x = keras.InputSpec(shape=(None, None, self.head.num_variables), dtype="int32")
    condition = {}
    if self.condition_dim:
      condition["local"] = keras.InputSpec(shape=(None, None, self.condition_dim), dtype="float32")
    if self.num_speakers:
      condition["speaker"] = keras.InputSpec(shape=(None,), dtype="int32")
    return [(x, condition)] if condition else [x]

  def get_config(self):
    return {
      **super().get_config(),
      "head": keras.saving.serialize_keras_object(self.head),
      "channels": self.channels,
      "dilation_rates": self.dilation_rates,
      "ordinal": self.ordinal,
      "condition_dim": self.condition_dim,
      "num_speakers": self.num_speakers,
      "audio_values": keras.saving.serialize_keras_object(self.audio_values),
    }

  @classmethod
  def from_config(cls, config):
    parts = ("head", "audio_values")
    deserialize = keras.saving.deserialize_keras_object
    return cls(**{key: deserialize(value) if key in parts else value for key, value in config.items()})


def _unpack(inputs):
  """The values and the condition or None."""
  return inputs if isinstance(inputs, (tuple, list)) else (inputs, None)


def _time_major(x):
  """[B, T, C] -> [T * B, C]."""
  return tf.reshape(tf.transpose(x, [1, 0, 2]), [-1, x.shape[-1]])
