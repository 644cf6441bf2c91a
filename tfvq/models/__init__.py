"""Keras models."""

from tfvq.models.image_networks import image_decoder, image_encoder
from tfvq.models.output_distributions import DiscretizedLogistic, FixedVarianceGaussian
from tfvq.models.pixelcnn import PixelCNN
from tfvq.models.sampling import (
  continue_sequence,
  grid_noise_shape,
  gumbel_noise,
  sample_grid,
  sample_grid_naive,
  sample_sequence,
  sample_sequence_naive,
  sequence_noise_shape,
  sequence_start,
)
from tfvq.models.spectral_vqvae import SpectralVQVAE
from tfvq.models.speech_networks import conditioner, log_mel_encoder, waveform_encoder
from tfvq.models.speech_vqvae import SpeechVQVAE
from tfvq.models.vae import VAE
from tfvq.models.vimco import VIMCO
from tfvq.models.vqvae import VQVAE
from tfvq.models.wavenet import WaveNet

__all__ = [
  "DiscretizedLogistic",
  "FixedVarianceGaussian",
  "PixelCNN",
  "SpectralVQVAE",
  "SpeechVQVAE",
  "VAE",
  "VIMCO",
  "VQVAE",
  "WaveNet",
  "conditioner",
  "continue_sequence",
  "grid_noise_shape",
  "gumbel_noise",
  "image_decoder",
  "image_encoder",
  "log_mel_encoder",
  "sample_grid",
  "sample_grid_naive",
  "sample_sequence",
  "sample_sequence_naive",
  "sequence_noise_shape",
  "sequence_start",
  "waveform_encoder",
]
