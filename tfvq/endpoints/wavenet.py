"""The step of a WaveNet's generation as an endpoint."""

import numpy as np
import tensorflow as tf

from tfvq import models
from tfvq.endpoints.endpoint import Endpoint, floats
from tfvq.endpoints.fast_wavenet import WaveNetStep
from tfvq.models.wavenet_pruning import has_zero_blocks

# The block size of TFLite's sparse products, in inputs of one output, and the least share of zeros of each kernel: with
# fewer the converter leaves a kernel dense, and XNNPACK's product of a dense int8 kernel beside sparse ones is wrong.
_SPARSE_BLOCKS = {"none": (4, 0.0), "dynamic": (16, 0.3)}


def step_endpoint(wavenet: models.WaveNet, examples, name: str = "step") -> Endpoint:
  """One step of a WaveNet's generation.

  Args:
    wavenet: The WaveNet.
    examples: As for `Endpoint`.
    name: The endpoint's name.
  """
  num_layers, channels = len(wavenet.blocks), wavenet.channels
  inputs = {
    "x": floats(1, channels),
    "past": floats(num_layers, channels),
    "share": floats(1, 2 * channels * num_layers),
    "noise": floats(1, *wavenet.head.noise_shape),
    "temperature": floats(wavenet.head.num_variables),
  }
  step = WaveNetStep(wavenet)
  function = lambda share, **inputs: step(projected=share, **inputs)
  sparse_modes = tuple(mode for mode, rule in _SPARSE_BLOCKS.items() if has_zero_blocks(wavenet, *rule))
  return Endpoint(name, function, inputs, wavenet, examples, sparse_modes=sparse_modes)


def step_examples(wavenet, inputs, projected, noise, temperature, first=0):
  """Inputs of the steps from `first` on, as many as there is noise for.

  Args:
    wavenet: The WaveNet.
    inputs: The inputs of its layers in all steps, [L, T, C].
    projected: The projected condition, [F, 1, 2CL], T a multiple of F.
    noise: Gumbel noise of the steps, [N, 1, ...].
    temperature: [G].
    first: The first step.
  """
  steps_per_frame = inputs.shape[1] // len(projected)
  for step in range(first, min(first + len(noise), inputs.shape[1])):
    pasts = [step - rate for rate in wavenet.dilation_rates]
    yield {
      "x": inputs[0, np.newaxis, step],
      "past": np.stack([inputs[layer, past] * (past >= 0) for layer, past in enumerate(pasts)]),
      "share": projected[step // steps_per_frame],
      "noise": noise[step - first],
      "temperature": temperature,
    }


def layer_inputs(wavenet, values, projected):
  """The input of each layer when the network is teacher-forced on values, integers [T, G] -> float32 [L, T, C]."""
  x = tf.concat([tf.zeros([1, wavenet.channels]), wavenet.embed(values)[:-1]], axis=0)
  inputs = []
  for block, layer_projected in zip(wavenet.blocks, wavenet.per_layer(projected), strict=True):
    inputs.append(x)
    x, _ = block((x, layer_projected[:, tf.newaxis]), batch_size=1)
  return tf.stack(inputs).numpy()
