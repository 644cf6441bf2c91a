"""Keras models."""

from tfvq.models.autoregressive import AutoregressiveModel
from tfvq.models.decoder import AutoregressiveDecoder, ConvolutionalDecoder, Decoder
from tfvq.models.image_networks import image_decoder, image_encoder
from tfvq.models.output_distributions import DiscretizedLogistic, FixedVarianceGaussian
from tfvq.models.pixelcnn import PixelCNN
from tfvq.models.sampling import (
  generation_start,
  gumbel_noise,
  noise_shape,
  sample,
  sample_naive,
  sample_steps,
)
from tfvq.models.spectral_vqvae import SpectralVQVAE
from tfvq.models.speech_networks import conditioner, log_mel_encoder, waveform_encoder
from tfvq.models.speech_vqvae import SpeechVQVAE
from tfvq.models.vae import VAE
from tfvq.models.vimco import VIMCO
from tfvq.models.vqvae import VQVAE
from tfvq.models.wavenet import WaveNet
from tfvq.models.wavenet_decoder import WaveNetDecoder

__all__ = [
  "AutoregressiveDecoder",
  "AutoregressiveModel",
  "ConvolutionalDecoder",
  "Decoder",
  "DiscretizedLogistic",
  "FixedVarianceGaussian",
  "PixelCNN",
  "SpectralVQVAE",
  "SpeechVQVAE",
  "VAE",
  "VIMCO",
  "VQVAE",
  "WaveNet",
  "WaveNetDecoder",
  "conditioner",
  "generation_start",
  "gumbel_noise",
  "image_decoder",
  "image_encoder",
  "log_mel_encoder",
  "noise_shape",
  "sample",
  "sample_naive",
  "sample_steps",
  "waveform_encoder",
]
