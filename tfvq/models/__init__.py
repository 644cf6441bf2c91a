"""Keras models."""

from tfvq.models.image_networks import image_decoder, image_encoder
from tfvq.models.output_distributions import DiscretizedLogistic, FixedVarianceGaussian
from tfvq.models.pixelcnn import PixelCNN
from tfvq.models.sampling import grid_noise_shape, gumbel_noise, sample_grid, sample_grid_naive
from tfvq.models.vae import VAE
from tfvq.models.vimco import VIMCO
from tfvq.models.vqvae import VQVAE

__all__ = [
  "DiscretizedLogistic",
  "FixedVarianceGaussian",
  "PixelCNN",
  "VAE",
  "VIMCO",
  "VQVAE",
  "grid_noise_shape",
  "gumbel_noise",
  "image_decoder",
  "image_encoder",
  "sample_grid",
  "sample_grid_naive",
]
