"""The endpoints of a prior over codes."""

import numpy as np
import tensorflow as tf

from tfvq import models
from tfvq.endpoints.endpoint import Endpoint, floats, integers
from tfvq.endpoints.wavenet import layer_inputs, step_endpoint, step_examples
from tfvq.models.pixelcnn import PixelCNNState


def wavenet_prior_endpoint(prior: models.WaveNet, source) -> Endpoint:
  """One step of the generation of codes by a WaveNet.

  Args:
    prior: The prior.
    source: Source of real codes with their speakers, to take examples from.
  """
  return step_endpoint(prior, lambda split: _wavenet_examples(prior, source, split), name="prior_step")


def pixelcnn_endpoints(prior: models.PixelCNN, source) -> list[Endpoint]:
  """The steps of the generation of codes by a PixelCNN: one per row and one per pixel.

  The state is the inputs "state_00", "state_01", ... and the outputs "next_state_00", ...; its first value is zeros. A
  class-conditional prior takes the class at the beginning of each row.

  Args:
    prior: The prior.
    source: Source of real codes, and of their labels if the prior is class-conditional, to take examples from.
  """
  label = {"label": integers(1)} if "label" in prior.conditions else {}
  label_ranges = {name: (0, prior.conditions[name].num_values - 1) for name in label}
  start = prior.initial_state(1)
  pasts = start[2:]  # all but the row and the column, which are inputs of their own
  names = [f"state_{index:02d}" for index in range(len(tf.nest.flatten(pasts)))]
  state_specs = {
    name: tf.TensorSpec(value.shape, value.dtype) for name, value in zip(names, tf.nest.flatten(pasts), strict=True)
  }
  width, num_variables, num_values = prior.width, prior.head.num_variables, prior.head.num_values

  def packed(state):
    return dict(zip(names, tf.nest.flatten(state[2:]), strict=True))

  def unpacked(tensors, row=0, column=0):
    return PixelCNNState(row, column, *tf.nest.pack_sequence_as(pasts, [tensors[name] for name in names]))

  def row(row, x_above, label=None, **state):
    projected = prior.project_condition({"label": label})
    return _as_outputs(packed(prior.row(x_above, unpacked(state, row), projected)))

  def step(column, x_left, noise, temperature, **state):
    features, state = prior.step(x_left, unpacked(state, column=column))
    return {"values": prior.head.sample(features, noise, temperature), **_as_outputs(packed(state))}

  @tf.function
  def states_before_rows(codes, label):
    """The states before each row of codes [1, H, W, G], stacked."""
    projected = prior.project_condition({"label": label})
    begin_row = lambda state, row: prior.row(codes[:, row - 1], state, projected)
    return packed(_states_before(begin_row, start, prior.height))

  @tf.function
  def states_before_pixels(codes, label, states, row):
    """The states before each pixel of a row, stacked; `states` are those before the rows."""
    next_pixel = lambda state, column: prior.step(codes[:, row, column - 1], state)[1]
    before = unpacked({name: value[row] for name, value in states.items()}, row)
    projected = prior.project_condition({"label": label})
    return packed(_states_before(next_pixel, prior.row(codes[:, row - 1], before, projected), width))

  def grids(split):
    """Real codes [1, H, W, G], their label or None, and the states before their rows."""
    for batch in source.batches(split, 1):
      codes = tf.reshape(batch["codes"], [1, *prior.grid_shape[:2], -1])
      given = batch["label"].numpy() if label else None
      yield codes.numpy(), given, _as_arrays(states_before_rows(codes, given))

  def rows(split):
    """Every row."""
    for codes, given, states in grids(split):
      for height in range(prior.height):
        state = {name: value[height] for name, value in states.items()}
        labels = {"label": given} if label else {}
        yield {"row": np.int32(height), "x_above": codes[:, height - 1], **labels, **state}

  def pixels(split):
    """Every pixel of one row of each grid: the first of the first grid, the second of the second, and so on."""
    for number, (codes, given, states) in enumerate(grids(split)):
      height = number % prior.height
      states = _as_arrays(states_before_pixels(codes, given, states, tf.constant(height)))
      noise = models.gumbel_noise(0, [width, 1, num_variables, num_values], number).numpy()
      for column in range(width):
        yield {
          "column": np.int32(column),
          "x_left": codes[:, height, column - 1],
          "noise": noise[column],
          "temperature": np.ones([num_variables], np.float32),
          **{name: value[column] for name, value in states.items()},
        }

  pixel = {
    "column": integers(),
    "x_left": integers(1, num_variables),
    "noise": floats(1, num_variables, num_values),
    "temperature": floats(num_variables),
  }
  return [
    Endpoint(
      "prior_row",
      row,
      {"row": integers(), "x_above": integers(1, width, num_variables), **label, **state_specs},
      prior,
      rows,
      ranges={"row": (0, prior.height - 1), "x_above": (0, num_values - 1), **label_ranges},
    ),
    Endpoint(
      "prior_step",
      step,
      {**pixel, **state_specs},
      prior,
      pixels,
      ranges={"column": (0, width - 1), "x_left": (0, num_values - 1)},
    ),
  ]


def _as_outputs(state):
  """A state under the names of outputs: within a file each name is used once."""
  return {f"next_{name}": value for name, value in state.items()}


def _as_arrays(tensors):
  return {name: tensor.numpy() for name, tensor in tensors.items()}


def _states_before(advance, start, num_steps):
  """The states before each of some steps, stacked; `advance` takes a state and a step's index."""
  after = tf.scan(advance, tf.range(num_steps), start)
  return tf.nest.map_structure(lambda first, rest: tf.concat([first[tf.newaxis], rest[:-1]], axis=0), start, after)


def _wavenet_examples(prior, source, split, num_steps=100):
  """Inputs of the step of a prior over codes of speech, teacher-forced on real codes."""
  temperature = np.ones([prior.head.num_variables], np.float32)
  for number, batch in enumerate(source.batches(split, 1)):
    projected = prior.project_condition({"speaker": batch["speaker"]}).numpy()
    codes = tf.reshape(batch["codes"][0], [-1, prior.head.num_variables])[:num_steps]
    inputs = layer_inputs(prior, codes, projected)
    noise = models.gumbel_noise(0, (inputs.shape[1], 1, *prior.head.noise_shape), number).numpy()
    yield from step_examples(prior, inputs, projected, noise, temperature)
