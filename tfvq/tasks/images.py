"""Images: frames, photographs, CIFAR-10, ImageNet, and PixelCNN on pixels. What differs between them is the data."""

import functools
import pathlib

import numpy as np
from ml_collections import ConfigDict

from tfvq import models
from tfvq.data.image_sources import open_image_source
from tfvq.layers import VectorQuantizer


class ImageTask:
  """Data, networks and conditions of an image system.

  Args:
    config: A config with `data`, and `autoencoder`, `prior` or both.
    data_folder: Where data that are dear to make are kept.
  """

  def __init__(self, config: ConfigDict, data_folder: pathlib.Path):
    self.config = config
    self.data_folder = data_folder

  @property
  def stages(self) -> tuple[str, ...]:
    """The stages of this system, in order."""
    if "autoencoder" not in self.config:
      return ("data", "prior", "samples", "evaluation")
    if "prior" not in self.config or self.config.autoencoder.bottleneck != "vq":
      return ("data", "autoencoder", "evaluation")
    return ("data", "autoencoder", "codes", "prior", "samples", "evaluation")

  @functools.cached_property
  def source(self):
    """The data set, see `tfvq.data.image_sources`; collected or fetched on first use."""
    return open_image_source(self.config.data, self.data_folder, self.config.seed)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels)."""
    return self.source.image_shape

  def build_autoencoder(self):
    """The autoencoder that `config.autoencoder` describes."""
    config = self.config.autoencoder
    distribution = self._distribution()
    network = {
      key: config[key]
      for key in ("hidden_units", "stem_units", "residual_units", "num_downsamplings", "latents_per_position")
    }
    decoder = models.image_decoder(
      self.image_shape,
      embedding_dim=config.embedding_dim,
      num_parameters=distribution.num_parameters,
      num_residual_blocks=config.num_decoder_blocks,
      **network,
    )

    def encoder(outputs_per_latent):
      return models.image_encoder(
        self.image_shape, embedding_dim=outputs_per_latent, num_residual_blocks=config.num_encoder_blocks, **network
      )

    if config.bottleneck == "gaussian":
      return models.VAE(encoder(2 * config.embedding_dim), decoder, distribution, seed=self.config.seed)
    if config.bottleneck == "vimco":
      return models.VIMCO(
        encoder(config.num_embeddings),
        decoder,
        distribution,
        config.num_embeddings,
        config.embedding_dim,
        num_samples=config.num_vimco_samples,
        seed=self.config.seed,
      )
    quantizer = VectorQuantizer(
      config.num_embeddings,
      config.embedding_dim,
      commitment_cost=config.commitment_cost,
      decay=config.decay if config.codebook_update == "moving_average" else None,
      revival_threshold=config.revival_threshold,
      seed=self.config.seed,
    )
    return models.VQVAE(encoder(config.embedding_dim), quantizer, decoder, distribution)

  def adapt_autoencoder(self, model) -> None:
    """Starts a codebook at the data: k-means of the untrained encoder's output."""
    if self.config.autoencoder.bottleneck == "vq":
      batch = next(iter(self.source.train(64, seed=self.config.seed)))
      model.adapt(batch["image"])

  def _distribution(self):
    if self.config.autoencoder.distribution == "logistic":
      return models.DiscretizedLogistic()
    batch = next(iter(self.source.train(256, seed=self.config.seed)))
    return models.FixedVarianceGaussian(float(np.var(batch["image"].numpy() / 127.5)))

  def build_prior(self, num_values: int, grid_shape: tuple[int, ...], num_classes: int):
    """The PixelCNN that `config.prior` describes, over codes or pixels."""
    config = self.config.prior
    return models.PixelCNN(
      num_values,
      grid_shape,
      filters=config.filters,
      num_layers=config.num_layers,
      kernel_size=config.kernel_size,
      hidden_units=config.hidden_units,
      dropout=config.dropout,
      ordinal="autoencoder" not in self.config,
      num_classes=num_classes if config.class_conditional else 0,
    )
