"""Ancestral sampling from autoregressive models, one sampler for every model, with the noise as an argument.

Whoever runs the model (Keras, XLA, an exported graph), the same noise gives the same samples, up to rounding.
"""

import tensorflow as tf

from tfvq.models.pixelcnn import PixelCNN
from tfvq.models.wavenet import WaveNet, WaveNetState


def gumbel_noise(seed: int, shape, part: int = 0) -> tf.Tensor:
  """Standard Gumbel noise, float32 of the given shape: argmax(logits + noise) draws from softmax(logits).

  Each `part` of one seed has noise of its own.
  """
  uniform = tf.random.stateless_uniform(shape, [seed, part], minval=1e-30, maxval=1.0)
  return -tf.math.log(-tf.math.log(uniform))


def grid_noise_shape(model: PixelCNN, batch_size: int) -> tuple[int, ...]:
  """Shape of the noise that `sample_grid` takes: (H, W, B, G, K)."""
  return (model.height, model.width, batch_size, model.num_variables, model.num_values)


def sample_grid(model: PixelCNN, noise, condition=None, temperature=1.0) -> tf.Tensor:
  """Draws grids from a PixelCNN with cached activations; wrap it in `tf.function`, with or without XLA.

  Reference: arXiv 1704.06001 (caching); arXiv 1711.00937, section 3.3 (sampling the prior).

  Args:
    model: The model.
    noise: Gumbel noise, float [H, W, B, G, K].
    condition: As for `model.log_prob`.
    temperature: 1 samples the model as it is, less makes likely values likelier, 0 takes the likeliest.

  Returns:
    Values, int32 [B, H, W], or [B, H, W, G] if the model's grid has G.
  """
  batch_size = _sizes(noise)[2]
  row_shape = (model.width, batch_size, model.num_variables)

  def draw_row(row, state, rows):
    above = tf.transpose(rows[row - 1], [1, 0, 2])
    state = model.row(above, state, row)
    row_noise = noise[row]

    def draw_pixel(column, state, pixels):
      features, state = model.step(pixels[column - 1], state, column)
      value = model.head.sample(features, row_noise[column], temperature)
      pixels = tf.tensor_scatter_nd_update(pixels, [[column]], value[tf.newaxis])
      return column + 1, state, pixels

    _, state, pixels = tf.while_loop(
      lambda column, *_: column < model.width,
      draw_pixel,
      (0, state, tf.zeros(row_shape, tf.int32)),
      maximum_iterations=model.width,
    )
    return row + 1, state, tf.tensor_scatter_nd_update(rows, [[row]], pixels[tf.newaxis])

  _, _, rows = tf.while_loop(
    lambda row, *_: row < model.height,
    draw_row,
    (0, model.initial_state(batch_size, condition), tf.zeros((model.height, *row_shape), tf.int32)),
    maximum_iterations=model.height,
  )
  values = tf.transpose(rows, [2, 0, 1, 3])
  return values if len(model.grid_shape) == 3 else values[..., 0]


def sample_grid_naive(model: PixelCNN, noise, condition=None, temperature=1.0) -> tf.Tensor:
  """The same samples as `sample_grid` by running the whole network once per position: slow, plain, for comparison."""
  batch_size = noise.shape[2]
  grid_shape = (batch_size, model.height, model.width, model.num_variables)

  def draw(index, values):
    row, column = index // model.width, index % model.width
    features = model.features(values, condition)[:, row, column]
    value = model.head.sample(features, noise[row, column], temperature)
    places = tf.stack([tf.range(batch_size), tf.fill([batch_size], row), tf.fill([batch_size], column)], axis=-1)
    return index + 1, tf.tensor_scatter_nd_update(values, places, value)

  num_positions = model.height * model.width
  _, values = tf.while_loop(lambda index, _: index < num_positions, draw, (0, tf.zeros(grid_shape, tf.int32)))
  return values if len(model.grid_shape) == 3 else values[..., 0]


def sequence_noise_shape(model: WaveNet, num_steps: int, batch_size: int) -> tuple[int, ...]:
  """Shape of the noise that `sample_sequence` takes: (T, B, G, ...)."""
  return (num_steps, batch_size, *model.head.noise_shape)


def sample_sequence(model: WaveNet, noise, condition=None, temperature=1.0) -> tf.Tensor:
  """Draws sequences from a WaveNet with cached activations; wrap it in `tf.function`, with or without XLA.

  Reference: arXiv 1611.09482 (caching); arXiv 1711.00937, section 4.3.

  Args:
    model: The model.
    noise: Gumbel noise, float [T, B, G, ...]; see `sequence_noise_shape`.
    condition: As for `model.log_prob`.
    temperature: 1 samples the model as it is, less makes likely values likelier, 0 takes the likeliest; a scalar, or
      one for each of a step's values, [G].

  Returns:
    Values, int32 [B, T, G].
  """
  start = sequence_start(model, _sizes(noise)[1])
  values, _ = continue_sequence(model, start, noise, model.project_condition(condition), temperature)
  return tf.transpose(values, [1, 0, 2])


def sequence_start(model: WaveNet, batch_size: int) -> tuple[WaveNetState, tf.Tensor]:
  """What `continue_sequence` goes on from before the first step."""
  return model.initial_state(batch_size), tf.zeros([batch_size, model.head.num_variables], tf.int32)


def continue_sequence(model: WaveNet, start, noise, shares, temperature=1.0):
  """Draws the next steps of sequences, so that long ones can be made part by part.

  Args:
    model: The model.
    start: `sequence_start`, or what this function returned before.
    noise: Gumbel noise of these steps, float [T, B, G, ...].
    shares: `model.project_condition` of these steps, F frames with T a multiple of F.
    temperature: As for `sample_sequence`.

  Returns:
    `(values int32 [T, B, G], start of the steps that follow)`.
  """
  num_steps, batch_size = _sizes(noise)[:2]
  shares = tf.concat(shares, axis=-1)
  steps_per_frame = num_steps // tf.shape(shares)[0]

  def draw(time, state, before, values):
    frame = tf.split(shares[time // steps_per_frame], len(model.blocks), axis=-1)
    features, state = model.step(before, state, frame)
    value = model.head.sample(features, noise[time], temperature)
    return time + 1, state, value, tf.tensor_scatter_nd_update(values, [[time]], value[tf.newaxis])

  values = tf.zeros([num_steps, batch_size, model.head.num_variables], tf.int32)
  _, state, before, values = tf.while_loop(
    lambda time, *_: time < num_steps, draw, (0, *start, values), maximum_iterations=num_steps
  )
  return values, (state, before)


def sample_sequence_naive(model: WaveNet, noise, condition=None, temperature=1.0) -> tf.Tensor:
  """The same samples as `sample_sequence` by running the whole network once per step: slow, plain, for comparison."""
  num_steps, batch_size = noise.shape[:2]

  def draw(time, values):
    x = tf.reshape(values, [num_steps * batch_size, -1])
    features = tf.reshape(model.features(x, batch_size, condition), [num_steps, batch_size, -1])[time]
    value = model.head.sample(features, noise[time], temperature)
    return time + 1, tf.tensor_scatter_nd_update(values, [[time]], value[tf.newaxis])

  values = tf.zeros([num_steps, batch_size, model.head.num_variables], tf.int32)
  _, values = tf.while_loop(lambda time, _: time < num_steps, draw, (0, values))
  return tf.transpose(values, [1, 0, 2])


def _sizes(x):
  """The sizes of a tensor's dimensions, each a number where it is known."""
  return [tf.shape(x)[axis] if size is None else size for axis, size in enumerate(x.shape)]
