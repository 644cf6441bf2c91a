"""Ancestral sampling from any autoregressive model, with the noise as an argument.

The same noise gives the same samples in Keras, XLA and exported graphs, up to rounding.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from tfvq.models.autoregressive import AutoregressiveModel


def gumbel_noise(seed: int, shape, part: int = 0) -> tf.Tensor:
  """Standard Gumbel noise, float32 of the given shape: argmax(logits + noise) is a sample of softmax(logits).

  Different values of `part` give independent noise for one seed, such as for the parts of a long sequence.
  """
  uniform = tf.random.stateless_uniform(shape, [seed, part], minval=1e-30, maxval=1.0)
  return -tf.math.log(-tf.math.log(uniform))


def noise_shape(model: AutoregressiveModel, batch_size: int, num_steps: int | None = None) -> tuple[int, ...]:
  """Shape of the noise that `sample` takes: (T, B, G, ...) for sequences, (H, W, B, G, ...) for grids.

  Args:
    model: The model.
    batch_size: B.
    num_steps: T, for sequences only.

  Raises:
    ValueError: `num_steps` is given for a grid, or missing for a sequence.
  """
  if (num_steps is None) == (model.num_position_axes == 1):
    kind = "sequences: give" if num_steps is None else "grids: leave out"
    raise ValueError(f"{model.name} samples {kind} num_steps.")
  positions = model.value_shape[:2] if num_steps is None else (num_steps,)
  return (*positions, batch_size, *model.head.noise_shape)


def sample(model: AutoregressiveModel, noise, condition=None, temperature=1.0) -> tf.Tensor:
  """Samples from a model, with cached activations; wrap it in `tf.function`, with or without XLA.

  Reference: arXiv 1611.09482 (caching in WaveNet); arXiv 1704.06001 (in PixelCNN); arXiv 1711.00937, section 3.3.

  Args:
    model: The model.
    noise: Gumbel noise, float [T, B, G, ...] or [H, W, B, G, ...], see `noise_shape`.
    condition: As for `model.log_prob`.
    temperature: >= 0; 1 samples from the model's distribution, a lower temperature favours probable values, and 0
      takes the most probable value. A scalar, or one for each value of a position, [G].

  Returns:
    Values, int32 [B, *model.value_shape].

  Raises:
    ValueError: The noise has a wrong shape, or the condition has wrong names or shapes.
  """
  noise = _checked_noise(model, noise)
  start = generation_start(model, _sizes(noise)[model.num_position_axes])
  draw = sample_steps if model.num_position_axes == 1 else _sample_rows
  values, _ = draw(model, start, noise, model.project_condition(condition), temperature)
  return _batch_first(model, values)


class Generation(NamedTuple):
  """State of a model during generation, and the values drawn last."""

  state: Any  # from the model's `initial_state` or `step`
  x_before: tf.Tensor  # values of the last position, int32 [B, G]


def generation_start(model: AutoregressiveModel, batch_size: int) -> Generation:
  """The state of generation before the first position."""
  return Generation(model.initial_state(batch_size), tf.zeros([batch_size, model.head.num_variables], tf.int32))


def sample_steps(model: AutoregressiveModel, start: Generation, noise, projected, temperature=1.0):
  """Samples the next steps of sequences, so that long sequences can be generated in parts.

  Args:
    model: A model of sequences.
    start: `generation_start(...)`, or the `Generation` that this function returned for the steps before.
    noise: Gumbel noise of these steps, float [T, B, G, ...].
    projected: `model.project_condition` of these steps, with F frames, T a multiple of F.
    temperature: As for `sample`.

  Returns:
    `(values int32 [T, B, G], Generation after these steps)`.
  """
  steps_per_frame = _sizes(noise)[0] // tf.shape(projected)[0]
  return _draw(model, start, noise, lambda time: projected[time // steps_per_frame], temperature)


def _sample_rows(model, start, noise, projected, temperature):
  """Samples grids, int32 [H, W, B, G], row by row; `model.row` begins each row."""
  height, width, batch_size = _sizes(noise)[:3]

  def draw_row(row, generation, rows):
    x_above = tf.transpose(rows[row - 1], [1, 0, 2])
    generation = generation._replace(state=model.row(x_above, generation.state, projected))
    values, generation = _draw(model, generation, noise[row], lambda _: None, temperature)
    return row + 1, generation, tf.tensor_scatter_nd_update(rows, [[row]], values[tf.newaxis])

  rows = tf.zeros([height, width, batch_size, model.head.num_variables], tf.int32)
  _, generation, rows = tf.while_loop(
    lambda row, *_: row < height, draw_row, (0, start, rows), maximum_iterations=height
  )
  return rows, generation


def _draw(model, start, noise, projected_at, temperature):
  """Samples position after position; `projected_at(index)` is the projected condition of a position."""
  num_positions, batch_size = _sizes(noise)[:2]

  def draw(index, generation, values):
    features, state = model.step(generation.x_before, generation.state, projected_at(index))
    x = model.head.sample(features, noise[index], temperature)
    return index + 1, Generation(state, x), tf.tensor_scatter_nd_update(values, [[index]], x[tf.newaxis])

  values = tf.zeros([num_positions, batch_size, model.head.num_variables], tf.int32)
  _, generation, values = tf.while_loop(
    lambda index, *_: index < num_positions, draw, (0, start, values), maximum_iterations=num_positions
  )
  return values, generation


def sample_naive(model: AutoregressiveModel, noise, condition=None, temperature=1.0) -> tf.Tensor:
  """The same samples as `sample`, by running the whole network once per position; slow, as a reference."""
  noise = _checked_noise(model, noise)
  *positions, batch_size = _sizes(noise)[: model.num_position_axes + 1]
  num_positions = tf.reduce_prod(positions)
  position_noise = tf.reshape(noise, [num_positions, batch_size, *model.head.noise_shape])

  def draw(index, values):
    x = _batch_first(model, tf.reshape(values, [*positions, batch_size, -1]))
    features = model.features(model.with_variables(x), condition)
    features = tf.reshape(features, [batch_size, num_positions, features.shape[-1]])[:, index]
    x = model.head.sample(features, position_noise[index], temperature)
    return index + 1, tf.tensor_scatter_nd_update(values, [[index]], x[tf.newaxis])

  values = tf.zeros([num_positions, batch_size, model.head.num_variables], tf.int32)
  _, values = tf.while_loop(lambda index, _: index < num_positions, draw, (0, values))
  return _batch_first(model, tf.reshape(values, [*positions, batch_size, -1]))


def _checked_noise(model, noise):
  """Converts the noise to a tensor, and checks the known part of its shape."""
  noise = tf.convert_to_tensor(noise)
  expected = (*model.value_shape[: model.num_position_axes], None, *model.head.noise_shape)
  if not noise.shape.is_compatible_with(expected):
    raise ValueError(f"The noise for {model.name} must have the shape {expected}, but has {tuple(noise.shape)}.")
  return noise


def _batch_first(model, values):
  """Transposes values, [positions..., B, G] -> [B, *value_shape]."""
  num_axes = model.num_position_axes
  values = tf.transpose(values, [num_axes, *range(num_axes), num_axes + 1])
  return values if len(model.value_shape) > num_axes else values[..., 0]


def _sizes(x):
  """The sizes of a tensor's dimensions: numbers where they are known, else scalar tensors."""
  return [tf.shape(x)[axis] if size is None else size for axis, size in enumerate(x.shape)]
