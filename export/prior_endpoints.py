"""What is exported of a prior over codes."""

import numpy as np
import tensorflow as tf

from tfvq import models

from .endpoint import Endpoint, floats, integers
from .wavenet_endpoints import layer_inputs, step_endpoint, step_examples


def prior_endpoints(run) -> list[Endpoint]:
  """The steps of the prior over codes: of a PixelCNN a row's and a pixel's, of a WaveNet its one.

  The state of a PixelCNN goes in and out as "state_00", "state_01", ...; it begins as zeros, or as what "prior_start"
  gives for a class.

  Args:
    run: `tfvq.training.stages.Run`.
  """
  prior = run.prior
  if isinstance(prior, models.WaveNet):
    return [step_endpoint(prior, lambda split: _prior_examples(prior, run.codes, split), name="prior_step")]
  label = {"label": integers(1)} if prior.num_classes else {}
  start = prior.initial_state(1, tf.zeros([1], tf.int32) if label else None)
  names = [f"state_{index:02d}" for index in range(len(tf.nest.flatten(start)))]
  state_specs = {
    name: tf.TensorSpec(value.shape, value.dtype) for name, value in zip(names, tf.nest.flatten(start), strict=True)
  }
  width, num_variables, num_values = prior.width, prior.num_variables, prior.num_values

  def packed(state):
    return dict(zip(names, tf.nest.flatten(state), strict=True))

  def unpacked(tensors):
    return tf.nest.pack_sequence_as(start, [tensors[name] for name in names])

  def begin(label):
    return packed(prior.initial_state(1, label))

  def row(row, x_above, **state):
    return _renamed(packed(prior.row(x_above, unpacked(state), row)))

  def step(column, x_left, noise, temperature, **state):
    features, state = prior.step(x_left, unpacked(state), column)
    return {"values": prior.head.sample(features, noise, temperature), **_renamed(packed(state))}

  traced_row, traced_step = tf.function(row), tf.function(step)

  def walk(split):
    """Every row and pixel of real codes: (kind, inputs)."""
    for batch in run.codes.batches(split, 1):
      codes = tf.reshape(batch["codes"], [1, *prior.grid_shape[:2], -1])
      state = packed(prior.initial_state(1, batch["label"] if label else None))
      for height in range(prior.height):
        inputs = {"row": tf.constant(height), "x_above": codes[:, height - 1], **state}
        yield "row", inputs
        state = _renamed(traced_row(**inputs), back=True)
        for column in range(width):
          noise = models.gumbel_noise(0, [1, num_variables, num_values], height * width + column)
          inputs = {
            "column": tf.constant(column),
            "x_left": codes[:, height, column - 1],
            "noise": noise,
            "temperature": tf.ones([num_variables]),
            **state,
          }
          yield "step", inputs
          outputs = traced_step(**inputs)
          state = _renamed({name: value for name, value in outputs.items() if name != "values"}, back=True)

  def examples_of(kind):
    return lambda split: (
      {name: value.numpy() for name, value in inputs.items()} for which, inputs in walk(split) if which == kind
    )

  pixel = {
    "column": integers(),
    "x_left": integers(1, num_variables),
    "noise": floats(1, num_variables, num_values),
    "temperature": floats(num_variables),
  }
  endpoints = [
    Endpoint(
      "prior_row",
      row,
      {"row": integers(), "x_above": integers(1, width, num_variables), **state_specs},
      prior,
      examples_of("row"),
    ),
    Endpoint("prior_step", step, {**pixel, **state_specs}, prior, examples_of("step")),
  ]
  if label:
    labels = lambda split: ({"label": batch["label"].numpy()} for batch in run.codes.batches(split, 1))
    endpoints.append(Endpoint("prior_start", begin, label, prior, labels))
  return endpoints


def _renamed(state, back=False):
  """A state's tensors by the names they go out with, or back by those they come in with: no file may use one twice."""
  if back:
    return {name.removeprefix("next_"): value for name, value in state.items()}
  return {f"next_{name}": value for name, value in state.items()}


def _prior_examples(prior, codes, split, num_steps=100):
  """What the step of a prior over speech's codes is given while it says real ones again."""
  temperature = np.ones([prior.head.num_variables], np.float32)
  for number, batch in enumerate(codes.batches(split, 1)):
    shares = prior.project_condition({"speaker": batch["label"]})
    codes = tf.reshape(batch["codes"][0], [-1, prior.head.num_variables])[:num_steps]
    inputs = layer_inputs(prior, codes, shares)
    noise = models.gumbel_noise(0, (inputs.shape[1], 1, *prior.head.noise_shape), number).numpy()
    yield from step_examples(prior, inputs, np.concatenate(shares, axis=-1)[:, 0], noise, temperature)
