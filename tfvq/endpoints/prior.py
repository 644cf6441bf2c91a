"""The endpoints of a prior over codes."""

import numpy as np
import tensorflow as tf

from tfvq import models
from tfvq.endpoints.endpoint import Endpoint, floats, integers
from tfvq.endpoints.wavenet import layer_inputs, step_endpoint, step_examples


def wavenet_prior_endpoint(prior: models.WaveNet, source) -> Endpoint:
  """One step of the generation of codes by a WaveNet.

  Args:
    prior: The prior.
    source: Source of real codes with their speakers, to take examples from.
  """
  return step_endpoint(prior, lambda split: _wavenet_examples(prior, source, split), name="prior_step")


def pixelcnn_endpoints(prior: models.PixelCNN, source) -> list[Endpoint]:
  """The steps of the generation of codes by a PixelCNN: one per row and one per pixel.

  The state is the inputs "state_00", "state_01", ... and the outputs "next_state_00", ...; its first value is zeros, or
  the output of "prior_start" for a class.

  Args:
    prior: The prior.
    source: Source of real codes, and of their labels if the prior is class-conditional, to take examples from.
  """
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
    return _as_outputs(packed(prior.row(x_above, unpacked(state), row)))

  def step(column, x_left, noise, temperature, **state):
    features, state = prior.step(x_left, unpacked(state), column)
    return {"values": prior.head.sample(features, noise, temperature), **_as_outputs(packed(state))}

  @tf.function
  def states_before_rows(codes, label):
    """The states before each row of codes [1, H, W, G], stacked."""
    begin_row = lambda state, row: prior.row(codes[:, row - 1], state, row)
    return packed(_states_before(begin_row, prior.initial_state(1, label), prior.height))

  @tf.function
  def states_before_pixels(codes, states, row):
    """The states before each pixel of a row, stacked; `states` are those before the rows."""
    next_pixel = lambda state, column: prior.step(codes[:, row, column - 1], state, column)[1]
    before = unpacked({name: value[row] for name, value in states.items()})
    return packed(_states_before(next_pixel, prior.row(codes[:, row - 1], before, row), width))

  def grids(split):
    """Real codes [1, H, W, G], and the states before their rows."""
    for batch in source.batches(split, 1):
      codes = tf.reshape(batch["codes"], [1, *prior.grid_shape[:2], -1])
      yield codes.numpy(), _as_arrays(states_before_rows(codes, batch["label"] if label else None))

  def rows(split):
    """Every row."""
    for codes, states in grids(split):
      for height in range(prior.height):
        state = {name: value[height] for name, value in states.items()}
        yield {"row": np.int32(height), "x_above": codes[:, height - 1], **state}

  def pixels(split):
    """Every pixel of one row of each grid: the first of the first grid, the second of the second, and so on."""
    for number, (codes, states) in enumerate(grids(split)):
      height = number % prior.height
      states = _as_arrays(states_before_pixels(codes, states, tf.constant(height)))
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
  endpoints = [
    Endpoint(
      "prior_row",
      row,
      {"row": integers(), "x_above": integers(1, width, num_variables), **state_specs},
      prior,
      rows,
      ranges={"row": (0, prior.height - 1), "x_above": (0, num_values - 1)},
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
  if label:
    labels = lambda split: ({"label": batch["label"].numpy()} for batch in source.batches(split, 1))
    ranges = {"label": (0, prior.num_classes - 1)}
    endpoints.append(Endpoint("prior_start", begin, label, prior, labels, ranges))
  return endpoints


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
    shares = prior.project_condition({"speaker": batch["speaker"]})
    codes = tf.reshape(batch["codes"][0], [-1, prior.head.num_variables])[:num_steps]
    inputs = layer_inputs(prior, codes, shares)
    noise = models.gumbel_noise(0, (inputs.shape[1], 1, *prior.head.noise_shape), number).numpy()
    yield from step_examples(prior, inputs, np.concatenate(shares, axis=-1)[:, 0], noise, temperature)
