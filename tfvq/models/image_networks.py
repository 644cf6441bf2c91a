"""The convolutional encoder and decoder of the image systems."""

import keras

from tfvq.layers.residual_block import ResidualBlock
from tfvq.ops.precision import full_precision


def image_encoder(
  image_shape: tuple[int, int, int],
  *,
  embedding_dim: int,
  hidden_units: int = 256,
  stem_units: int | None = None,
  residual_units: int | None = None,
  num_residual_blocks: int = 2,
  num_downsamplings: int = 2,
  latents_per_position: int = 1,
) -> keras.Model:
  """An encoder of strided 4x4 convolutions, residual blocks, and a projection to the dimension of the codebook.

  Reference: arXiv 1711.00937, section 4.1.

  Args:
    image_shape: (height, width, channels); height and width divisible by 2 ** num_downsamplings.
    embedding_dim: D, dimension of the codebook.
    hidden_units: Channels of the residual blocks; 256 in the paper.
    stem_units: Channels of the first convolution; each further one has twice as many, up to `hidden_units`. None means
      `hidden_units`, as in the paper.
    residual_units: Channels inside a residual block; None means `hidden_units`.
    num_residual_blocks: Number of residual blocks, >= 0; 2 in the paper.
    num_downsamplings: Number of convolutions with stride 2, >= 0; 2 in the paper, for 4 x 4 pixels per position.
    latents_per_position: G, number of latents at each position, >= 1; the paper's CIFAR-10 model has 10.

  Returns:
    A model: images, uint8 or float [B, H, W, channels] in 0..255 -> z_e, float [B, H / s, W / s, D], or
    [B, H / s, W / s, G, D] if G > 1, with s = 2 ** num_downsamplings.

  Raises:
    ValueError: The image size is not divisible by the strides.
  """
  grid_shape = latent_grid_shape(image_shape, num_downsamplings)
  inputs = keras.Input(image_shape)
  h = keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
  *upper_units, last_units = _units_per_scale(hidden_units, stem_units, num_downsamplings)
  names = iter(["stem"])  # the export finds the first convolution by its name
  for units in upper_units:
    h = keras.layers.Conv2D(units, 4, strides=2, padding="same", activation="relu", name=next(names, None))(h)
  last_stride = 2 if num_downsamplings else 1
  h = keras.layers.Conv2D(last_units, 4, strides=last_stride, padding="same", name=next(names, None))(h)
  for _ in range(num_residual_blocks):
    h = ResidualBlock(hidden_units, residual_units)(h)
  if num_residual_blocks:
    h = keras.layers.ReLU()(h)
  h = keras.layers.Conv2D(latents_per_position * embedding_dim, 1)(h)
  if latents_per_position > 1:
    h = keras.layers.Reshape((*grid_shape, latents_per_position, embedding_dim))(h)
  return keras.Model(inputs, h, name="encoder")


def image_decoder(
  image_shape: tuple[int, int, int],
  *,
  embedding_dim: int,
  num_parameters: int = 1,
  hidden_units: int = 256,
  stem_units: int | None = None,
  residual_units: int | None = None,
  num_residual_blocks: int = 2,
  num_downsamplings: int = 2,
  latents_per_position: int = 1,
) -> keras.Model:
  """The mirror of `image_encoder`: residual blocks, then transposed convolutions 4x4.

  Reference: arXiv 1711.00937, section 4.1.

  Args:
    image_shape: (height, width, channels) of the images.
    embedding_dim: D, dimension of the codebook.
    num_parameters: Number of parameters of the output distribution per channel of a pixel.
    hidden_units: As for `image_encoder`.
    stem_units: As for `image_encoder`.
    residual_units: As for `image_encoder`.
    num_residual_blocks: As for `image_encoder`.
    num_downsamplings: As for `image_encoder`.
    latents_per_position: As for `image_encoder`.

  Returns:
    A model: z_q, of the shape of `image_encoder`'s z_e -> parameters, float [B, H, W, num_parameters * channels], in
    units in which the pixel values 0..255 are -1..1.

  Raises:
    ValueError: The image size is not divisible by the strides.
  """
  grid_shape = latent_grid_shape(image_shape, num_downsamplings)
  several = latents_per_position > 1
  inputs = keras.Input((*grid_shape, latents_per_position, embedding_dim) if several else (*grid_shape, embedding_dim))
  h = keras.layers.Reshape((*grid_shape, latents_per_position * embedding_dim))(inputs) if several else inputs
  h = keras.layers.Conv2D(hidden_units, 3, padding="same", name="stem")(h)
  for _ in range(num_residual_blocks):
    h = ResidualBlock(hidden_units, residual_units)(h)
  h = keras.layers.ReLU()(h)
  *upper_units, _ = _units_per_scale(hidden_units, stem_units, num_downsamplings)
  for units in reversed(upper_units):
    h = keras.layers.Conv2DTranspose(units, 4, strides=2, padding="same", activation="relu")(h)
  last_stride = 2 if num_downsamplings else 1
  # The output distribution needs full precision, even if the other layers compute in 16 bits.
  dtype = full_precision(keras.config.dtype_policy().compute_dtype)
  channels = num_parameters * image_shape[-1]
  h = keras.layers.Conv2DTranspose(channels, 4, strides=last_stride, padding="same", dtype=dtype)(h)
  return keras.Model(inputs, h, name="decoder")


def latent_grid_shape(image_shape: tuple[int, ...], num_downsamplings: int) -> tuple[int, int]:
  """(height, width) of the grid of an image's codes.

  Raises:
    ValueError: The image size is not divisible by the strides.
  """
  stride = 2**num_downsamplings
  height, width = image_shape[:2]
  if height % stride or width % stride:
    raise ValueError(f"The image size {height}x{width} is not divisible by the encoder's total stride of {stride}.")
  return height // stride, width // stride


def _units_per_scale(hidden_units, stem_units, num_downsamplings):
  """Channels after each strided convolution; the last is `hidden_units`."""
  units = [min(hidden_units, (stem_units or hidden_units) * 2**scale) for scale in range(num_downsamplings)]
  return [*units[:-1], hidden_units]
