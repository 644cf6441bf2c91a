"""The networks of autoencoders whose data are grids of codes."""

import keras

_STRIDE = 4  # of both networks


def grid_encoder(
  num_values: int, grid_shape: tuple[int, int], embedding_dim: int, hidden_units: int = 64
) -> keras.Model:
  """An encoder of a grid of codes to one vector: an embedding, two strided convolutions and a dense layer.

  Args:
    num_values: K, number of values of a code.
    grid_shape: (H, W).
    embedding_dim: D, dimension of the vector.
    hidden_units: Channels of the embedding and of the convolutions.

  Returns:
    A model, integers [B, H, W] in 0..K-1 -> z_e, float [B, D].
  """
  inputs = keras.Input(grid_shape, dtype="int32")
  h = keras.layers.Embedding(num_values, hidden_units)(inputs)
  for name in ("stem", None):
    h = keras.layers.Conv2D(hidden_units, 4, strides=2, padding="same", activation="relu", name=name)(h)
  h = keras.layers.Flatten()(h)
  return keras.Model(inputs, keras.layers.Dense(embedding_dim)(h), name="encoder")


def grid_decoder(
  grid_shape: tuple[int, int], embedding_dim: int, num_channels: int, hidden_units: int = 64
) -> keras.Model:
  """The mirror of `grid_encoder`: a dense layer and two transposed convolutions.

  Args:
    grid_shape: (H, W).
    embedding_dim: D, dimension of the vector.
    num_channels: E, channels of the output.
    hidden_units: Channels of the layers before it.

  Returns:
    A model, z_q, float [B, D] -> float [B, H, W, E].
  """
  height, width = grid_shape
  rows, columns = -(-height // _STRIDE), -(-width // _STRIDE)
  inputs = keras.Input((embedding_dim,))
  h = keras.layers.Dense(rows * columns * hidden_units, activation="relu")(inputs)
  h = keras.layers.Reshape((rows, columns, hidden_units))(h)
  for units, activation in ((hidden_units, "relu"), (num_channels, None)):
    h = keras.layers.Conv2DTranspose(units, 4, strides=2, padding="same", activation=activation)(h)
  h = keras.layers.Cropping2D(((0, rows * _STRIDE - height), (0, columns * _STRIDE - width)))(h)
  return keras.Model(inputs, h, name="decoder")
