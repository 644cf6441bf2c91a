"""WaveNet generation as graphs for devices: one step, whose past the caller keeps, or several steps with a state.

Reference: arXiv 1611.09482 (each layer caches its last inputs).
"""

import tensorflow as tf

from tfvq.models import WaveNet
from tfvq.ops.gated import gated_activation


class WaveNetStep:
  """One step of generation; the caller keeps the past.

  The caller has a ring buffer of `dilation_rate` vectors for each layer. At each step it passes the oldest vector of
  every ring and overwrites it with the layer's new input.

  Args:
    model: The model.
  """

  def __init__(self, model: WaveNet):
    self.model = model

  def __call__(self, x, past, projected, noise, temperature):
    """One step.

    Args:
      x: The embedded values of the previous step, float [1, C]; zeros in the first step.
      past: The input of each layer `dilation_rate` steps before, float [L, C]; zeros before the first step.
      projected: The projected condition, float [1, 2 C L].
      noise: Gumbel noise, float [1, *model.head.noise_shape].
      temperature: Float [G].

    Returns:
      {"values": int32 [1, G], "x_next": float [1, C], "inputs": float [L, C]}.
    """
    features, inputs = self.model.advance(x, tf.split(past, len(self.model.blocks)), projected)
    values = self.model.head.sample(features, noise, temperature)
    return {"values": values, "x_next": self.model.embed(values), "inputs": tf.concat(inputs, axis=0)}


class WaveNetSteps:
  """Several steps of generation in one call; the past is in variables, one for each layer.

  This takes fewer calls, and one matrix product for all of a layer's past inputs that are known before the first step.

  Args:
    model: The model.
    num_steps: N, steps per call.
  """

  def __init__(self, model: WaveNet, num_steps: int):
    self.model = model
    self.num_steps = num_steps
    self.x = tf.Variable(tf.zeros([1, model.channels]), name="x")
    self.pasts = [
      tf.Variable(tf.zeros([block.dilation_rate, model.channels]), name=f"past_{layer}")
      for layer, block in enumerate(model.blocks)
    ]

  @property
  def state(self) -> list[tf.Variable]:
    """The variables; all zeros before the first step."""
    return [self.x, *self.pasts]

  def __call__(self, projected, noise, temperature):
    """The next steps.

    Args:
      projected: The projected condition of all these steps, float [1, 2 C L].
      noise: Gumbel noise, float [N, *model.head.noise_shape].
      temperature: Float [G].

    Returns:
      Values, int32 [N, G].
    """
    layers = [
      _Layer(block, variable.read_value(), layer_projected, self.num_steps)
      for block, variable, layer_projected in zip(
        self.model.blocks, self.pasts, self.model.per_layer(projected), strict=True
      )
    ]
    x, values = self.x.read_value(), []
    for step_noise in tf.split(noise, self.num_steps):
      skips = []
      for layer in layers:
        x, skip = layer.step(x)
        skips.append(skip)
      values.append(self.model.head.sample(tf.concat(skips, axis=-1), step_noise, temperature))
      x = self.model.embed(values[-1])
    self.x.assign(x)
    for variable, layer in zip(self.pasts, layers, strict=True):
      variable.assign(layer.past())
    return tf.concat(values, axis=0)


class SpeechSteps:
  """Several steps of a speech decoder in one call, and their audio.

  Args:
    wavenet: The WaveNet of the decoder, with `audio_values`.
    num_steps: N, steps per call.
    context: Steps on either side that a sample of audio depends on; the audio is delayed by as many steps.
  """

  def __init__(self, wavenet: WaveNet, num_steps: int, context: int):
    self.steps = WaveNetSteps(wavenet, num_steps)
    self.audio_values = wavenet.audio_values
    self.context = context
    self.bands = tf.Variable(tf.zeros([2 * context, self.audio_values.num_bands]), name="bands")

  @property
  def state(self) -> list[tf.Variable]:
    """The variables; all zeros before the first step."""
    return [*self.steps.state, self.bands]

  def __call__(self, projected, noise, temperature):
    """The next steps; the arguments are those of `WaveNetSteps`.

    Returns:
      {"audio": float [N * num_bands]}, which starts `context` steps before the first of these steps.
    """
    bands = self.audio_values.bands(self.steps(projected, noise, temperature))
    bands = tf.concat([self.bands.read_value(), bands], axis=0)
    num_steps, num_bands = self.steps.num_steps, self.audio_values.num_bands
    self.bands.assign(tf.slice(bands, [num_steps, 0], [2 * self.context, num_bands]))
    audio = self.audio_values.join(bands[tf.newaxis])[0]
    return {"audio": tf.slice(audio, [self.context * num_bands], [num_steps * num_bands])}


class _Layer:
  """One layer of a WaveNet during several steps.

  Args:
    block: The `tfvq.layers.DilatedBlock`.
    past: Its last inputs, oldest first, [dilation_rate, C].
    projected: The projected condition, [1, 2C].
    num_steps: Number of steps.
  """

  def __init__(self, block, past, projected, num_steps):
    self.block = block
    self.inputs = []
    self.old = past
    kernel = tf.convert_to_tensor(block.conv.kernel)
    self.from_past, self.from_present = kernel[: block.channels], kernel[block.channels :]
    self.bias = block.conv.bias + projected
    # tf.slice: a strided slice is slow in TFLite.
    self.num_known = min(block.dilation_rate, num_steps)
    known = tf.slice(past, [0, 0], [self.num_known, block.channels])
    self.known_gates = tf.split(tf.matmul(known, self.from_past) + self.bias, self.num_known)

  def step(self, x):
    """The next step, x [1, C] -> (x, skip)."""
    index = len(self.inputs)
    if index < self.num_known:
      gates = self.known_gates[index]
    else:
      gates = tf.matmul(self.inputs[index - self.block.dilation_rate], self.from_past) + self.bias
    self.inputs.append(x)
    skip = gated_activation(tf.matmul(x, self.from_present) + gates)
    return (x if self.block.last else x + self.block.residual(skip)), skip

  def past(self):
    """The last inputs after these steps."""
    rate, num_steps = self.block.dilation_rate, len(self.inputs)
    if rate <= num_steps:
      return tf.concat(self.inputs[num_steps - rate :], axis=0)
    kept = tf.slice(self.old, [num_steps, 0], [rate - num_steps, self.block.channels])
    return tf.concat([kept, *self.inputs], axis=0)
