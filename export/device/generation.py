"""Generation on a device: the loop over the decoder's steps, and its noise."""

import numpy as np


class StepLoop:
  """Runs the decoder's steps, and keeps the past inputs of its layers.

  Args:
    model: The `Model` of the step.
    facts: The fields of codec.json.
  """

  def __init__(self, model, facts):
    self._model = model
    self._steps_per_frame = facts["steps_per_frame"]
    rates = np.array(facts["dilation_rates"])
    # A ring buffer for each layer, one after another.
    self._rates, self._first = rates, np.cumsum(rates) - rates
    self._rings = np.zeros([rates.sum(), facts["channels"]], np.float32)
    self._x = np.zeros([1, facts["channels"]], np.float32)
    self._time = 0

  def run(self, projected, noise, temperature):
    """Runs the steps of several frames.

    Args:
      projected: The projected condition, float32 [F, 2CL].
      noise: Gumbel noise, float32 [T, *noise_shape], at most `steps_per_frame` steps per frame.
      temperature: Float32 [G].

    Returns:
      Values, int32 [T, G].
    """
    model, rings = self._model, self._rings
    projected_in, noise_in, past_in, x_in, x_out, inputs_out, values_out = map(
      model.view, ("share", "noise", "past", "x", "x_next", "inputs", "values")
    )
    model.set("temperature", temperature)
    x_in[...] = self._x
    places = self._first + (self._time + np.arange(len(noise)))[:, np.newaxis] % self._rates
    values = np.empty([len(noise), values_out.shape[1]], np.int32)
    for step, (step_places, step_noise) in enumerate(zip(places, noise, strict=True)):
      if step % self._steps_per_frame == 0:
        projected_in[0] = projected[step // self._steps_per_frame]
      noise_in[0] = step_noise
      rings.take(step_places, axis=0, out=past_in, mode="clip")  # other modes copy
      model.invoke()
      rings[step_places] = inputs_out
      x_in[...] = x_out
      values[step] = values_out
    self._x = x_out.copy()
    self._time += len(noise)
    return values


class GumbelNoise:
  """Standard Gumbel noise, drawn from 65,536 quantiles; this is several times as fast as two logarithms per number.

  Args:
    seed: Seed.
    shape: Shape of the noise of a step.
  """

  def __init__(self, seed: int, shape):
    self._shape = tuple(shape)
    self._generator = np.random.Generator(np.random.PCG64(seed))
    self._quantiles = -np.log(-np.log((np.arange(2**16) + 0.5) / 2**16)).astype(np.float32)

  def __call__(self, num_steps: int) -> np.ndarray:
    size = num_steps * int(np.prod(self._shape))
    words = self._generator.bit_generator.random_raw(-(-size // 4))
    return self._quantiles[words.view(np.uint16)[:size]].reshape(num_steps, *self._shape)
