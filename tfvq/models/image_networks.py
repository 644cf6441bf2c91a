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
  """Strided convolutions 4x4, residual blocks, and a projection to the codebook's dimension.

  Reference: arXiv 1711.00937, section 4.1.

  Args:
    image_shape: (height, width, channels); height and width divisible by 2 ** num_downsamplings.
    embedding_dim: D, dimension of the codebook.
    hidden_units: Channels of the residual blocks; 256 in the paper.
    stem_units: Channels at the highest resolution; None means `hidden_units`, as in the paper. They double until
      `hidden_units` with every further convolution.
    residual_units: Channels inside a residual block; None means `hidden_units`.
    num_residual_blocks: Residual blocks; 2 in the paper.
    num_downsamplings: Convolutions of stride 2, >= 0; 2 in the paper, for 4 x 4 pixels per position.
    latents_per_position: G, latents at each position; the paper's CIFAR-10 model has 10.

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
  names = iter(["stem"])  # of the first convolution, by which an export knows it
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
    image_shape: (height, width, channels) of the image to be made.
    embedding_dim: D, dimension of the codebook.
    num_parameters: Parameters of the output distribution per pixel channel.
    hidden_units: As for `image_encoder`, and so are the arguments after it.
    stem_units: See there.
    residual_units: See there.
    num_residual_blocks: See there.
    num_downsamplings: See there.
    latents_per_position: See there.

  Returns:
    A model: z_q as `image_encoder` returns z_e -> parameters, float [B, H, W, num_parameters * channels], in units
    in which the pixel values 0..255 are -1..1.

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
  # The distribution needs full precision, whatever the other layers compute in.
  dtype = full_precision(keras.config.dtype_policy().compute_dtype)
  channels = num_parameters * image_shape[-1]
  h = keras.layers.Conv2DTranspose(channels, 4, strides=last_stride, padding="same", dtype=dtype)(h)
  return keras.Model(inputs, h, name="decoder")


def latent_grid_shape(image_shape: tuple[int, ...], num_downsamplings: int) -> tuple[int, int]:
  """(H, W) of the codes of an image.

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
