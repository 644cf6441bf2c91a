"""Ancestral sampling from autoregressive models, one sampler for every model, with the noise as an argument.

Whoever runs the model (Keras, XLA, an exported graph), the same noise gives the same samples, up to rounding.
"""

import tensorflow as tf

from tfvq.models.pixelcnn import PixelCNN


def gumbel_noise(seed: int, shape) -> tf.Tensor:
  """Standard Gumbel noise, float32 of the given shape: argmax(logits + noise) draws from softmax(logits)."""
  uniform = tf.random.stateless_uniform(shape, [seed, 0], minval=1e-30, maxval=1.0)
  return -tf.math.log(-tf.math.log(uniform))


def grid_noise_shape(model: PixelCNN, batch_size: int) -> tuple[int, ...]:
  """Shape of the noise that `sample_grid` takes: (H, W, B, G, K)."""
  return (model.height, model.width, batch_size, model.num_variables, model.num_values)


def sample_grid(model: PixelCNN, noise, condition=None, temperature=1.0) -> tf.Tensor:
  """Draws grids from a PixelCNN with cached activations; wrap it in `tf.function`, with or without XLA.

  Reference: arXiv 1704.06001 (caching); arXiv 1711.00937, section 3.3 (sampling the prior).

  Args:
    model: The model.
    noise: Gumbel noise, float [H, W, B, G, K], B static.
    condition: As for `model.log_prob`.
    temperature: 1 samples the model as it is, less makes likely values likelier, 0 takes the likeliest.

  Returns:
    Values, int32 [B, H, W], or [B, H, W, G] if the model's grid has G.
  """
  batch_size = noise.shape[2]
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
