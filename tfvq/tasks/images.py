"""Systems of images: frames, photographs, CIFAR-10, ImageNet, and a PixelCNN of pixels. They differ in their data."""

import functools

import numpy as np
import tensorflow as tf
import tqdm

from tfvq import models
from tfvq.configs.common import IMAGE_RULES
from tfvq.configs.rules import Rules, require
from tfvq.data.image_sources import SOURCES, open_image_source
from tfvq.endpoints.image_signatures import image_signatures
from tfvq.endpoints.images import image_endpoints
from tfvq.endpoints.prior import pixelcnn_endpoints
from tfvq.errors import UserError
from tfvq.evaluation import sections
from tfvq.evaluation.metrics import CODE_METRICS, Metric, bits_per_value, code_statistics, psnr_db, to_uint8
from tfvq.files import atomic_write, sha256
from tfvq.layers import build_quantizer
from tfvq.tasks.autoencoder_task import AutoencoderTask, check_quantizer
from tfvq.tasks.pixelcnn import build_pixelcnn, check_pixelcnn

_BATCH_SIZE = 64  # for encoding and evaluation


class ImageTask(AutoencoderTask):
  """Image systems; the config has `data`, and `autoencoder`, `prior` or both."""

  rules = IMAGE_RULES | Rules(choices={"data.source": tuple(sorted(SOURCES))})
  metrics = (
    Metric("reconstruction_psnr_db", "PSNR of reconstructions", "dB"),
    Metric("autoencoder_bits_per_dim", "autoencoder, bound in bits/dim"),
    *CODE_METRICS,
    Metric("bits_per_dim", "bits/dim"),
  )

  @classmethod
  def validate(cls, config):
    require(config, "data.source", "data.image_size", "report")
    super().validate(config)
    if "autoencoder" not in config and "prior" not in config:
      raise UserError("config.autoencoder and config.prior are missing; set at least one of them.")
    if "autoencoder" in config:
      require(config, "train.autoencoder")
      check_quantizer(config.autoencoder)
    if "prior" in config and ("autoencoder" not in config or config.autoencoder.bottleneck == "vq"):
      require(config, "train.prior", "samples")
    below = 90 if config.data.source == "photos" else 100  # of the photographs, a tenth is held out
    if config.data.get("validation_percent", 0) >= below:
      raise UserError(
        f"config.data.validation_percent is {config.data.validation_percent}; it must be less than {below}, or "
        "nothing is left to train on."
      )
    if "prior" in config:
      check_pixelcnn(config.prior)
    if "autoencoder" in config:
      stride = 2**config.autoencoder.num_downsamplings
      if config.data.image_size % stride:
        raise UserError(
          f"config.data.image_size is {config.data.image_size}, which the encoder's total stride of {stride} "
          "(2 ** config.autoencoder.num_downsamplings) does not divide."
        )

  @property
  def has_autoencoder(self):
    return "autoencoder" in self.config

  @property
  def has_prior(self):
    return "prior" in self.config and not (self.has_autoencoder and self.config.autoencoder.bottleneck != "vq")

  @functools.cached_property
  def source(self):
    """The data set, see `tfvq.data.image_sources`; collected or downloaded on first use."""
    return open_image_source(self.config.data, self.data_folder, self.config.seed)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """(height, width, channels)."""
    return self.source.image_shape

  @property
  def evaluation_splits(self):
    """Every split but "train"."""
    return tuple(split for split in self.source.split_names if split != "train")

  def prepare_data(self):
    if "prior" in self.config and self.config.prior.class_conditional and not self.num_classes:
      raise UserError(
        f"config.prior.class_conditional needs classes, and the data of config.data.source={self.config.data.source} "
        "have none: set it to False."
      )
    return {"num_examples": {split: self.source.num_examples(split) for split in self.source.split_names}}

  def build_autoencoder(self):
    config = self.config.autoencoder
    distribution = self._distribution()
    network = {
      key: config[key]
      for key in ("hidden_units", "stem_units", "residual_units", "num_downsamplings", "latents_per_position")
    }
    decoder_network = models.image_decoder(
      self.image_shape,
      embedding_dim=config.embedding_dim,
      num_parameters=distribution.num_parameters,
      num_residual_blocks=config.num_decoder_blocks,
      **network,
    )
    decoder = models.ConvolutionalDecoder(decoder_network, distribution)

    def encoder(outputs_per_latent):
      return models.image_encoder(
        self.image_shape, embedding_dim=outputs_per_latent, num_residual_blocks=config.num_encoder_blocks, **network
      )

    if config.bottleneck == "gaussian":
      return models.VAE(encoder(2 * config.embedding_dim), decoder, seed=self.config.seed)
    if config.bottleneck == "vimco":
      return models.VIMCO(
        encoder(config.quantizer.num_embeddings),
        decoder,
        config.quantizer.num_embeddings,
        config.embedding_dim,
        num_samples=config.num_vimco_samples,
        seed=self.config.seed,
      )
    quantizer = build_quantizer(config.quantizer, config.embedding_dim, self.config.seed)
    return models.VQVAE(encoder(config.embedding_dim), quantizer, decoder)

  def autoencoder_batches(self, model, batch_size, step):
    del model
    batches = self.source.train(batch_size, self.config.seed, step)
    return batches.map(lambda batch: batch["image"])

  def prepare_autoencoder(self, model, train_part):
    """Initialises the codebook by k-means on the untrained encoder's output."""
    del train_part
    if self.config.autoencoder.bottleneck == "vq":
      batch = next(iter(self.source.train(64, seed=self.config.seed)))
      model.adapt(batch["image"])

  def _distribution(self):
    if self.config.autoencoder.distribution == "logistic":
      return models.DiscretizedLogistic()
    batch = next(iter(self.source.train(256, seed=self.config.seed)))
    return models.FixedVarianceGaussian(float(np.var(batch["image"].numpy() / 127.5)))

  def encode_splits(self):
    encode = tf.function(self.autoencoder.encode, reduce_retracing=True)
    splits = {}
    for split in self.source.split_names:
      num_batches = -(-self.source.num_examples(split) // _BATCH_SIZE)
      batches = self.source.batches(split, _BATCH_SIZE)
      parts = []
      for batch in tqdm.tqdm(batches, total=num_batches, desc=f"codes {split}", unit="batch", dynamic_ncols=True):
        part = {"codes": encode(batch["image"]).numpy()}
        if "label" in batch:
          part["label"] = batch["label"].numpy()
        parts.append(part)
      splits[split] = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    num_values = {"codes": self.autoencoder.quantizer.num_values}
    return splits, {**num_values, "label": self.num_classes} if self.num_classes else num_values

  @property
  def num_classes(self) -> int:
    """Number of classes of the images; 0 if they have none."""
    return self.source.num_classes

  def build_prior(self):
    if self.has_codes:
      num_values, grid_shape = self.num_code_values, tuple(self.manifest["features"]["codes"]["shape"])
    else:
      num_values, grid_shape = 256, self.image_shape
    num_classes = self.num_classes if self.config.prior.class_conditional else 0
    return build_pixelcnn(
      self.config.prior, num_values, grid_shape, ordinal=not self.has_codes, num_classes=num_classes
    )

  @property
  def _prior_source(self):
    """The data of the prior: codes, or images."""
    return self.codes if self.has_codes else self.source

  def prior_batches(self, batch_size, step):
    return self._prior_source.train(batch_size, self.config.seed, step).map(self._prior_inputs)

  def _prior_inputs(self, batch):
    """Converts a batch for the prior's `fit`: to values, or ((values, condition),)."""
    x = batch["codes"] if "codes" in batch else batch["image"]
    return ((x, {"label": batch["label"]}),) if self.config.prior.class_conditional else x

  def write_samples(self, folder):
    prior, num = self.prior, self.config.samples.num
    condition = None
    if self.config.prior.class_conditional:
      condition = {"label": tf.range(num, dtype=tf.int32) % prior.num_classes}
    noise = models.gumbel_noise(self.config.seed, models.noise_shape(prior, num))
    values = tf.function(models.sample)(prior, noise, condition, self.config.samples.temperature)
    images = to_uint8(self.autoencoder.decode(values) if self.has_codes else values)
    with atomic_write(folder / "samples.npz") as temporary:
      np.savez(temporary, values=values, images=images)
    sections.save_image_grid(folder / "samples.png", images, num_columns=8)

  def measure(self, split):
    measured = {}
    if self.has_autoencoder:
      images = (batch["image"] for batch in self.source.batches(split, _BATCH_SIZE))
      reconstruct = tf.function(self.autoencoder.reconstruct, reduce_retracing=True)
      measured["reconstruction_psnr_db"] = psnr_db(images, reconstruct)
      if self.autoencoder.decoder.discrete:
        self.autoencoder.compile()
        batches = self.source.batches(split, _BATCH_SIZE).map(lambda batch: batch["image"])
        results = self.autoencoder.evaluate(batches, verbose=0, return_dict=True)
        measured["autoencoder_bits_per_dim"] = results["bits_per_dim"]
    if self.has_codes:
      measured |= code_statistics(self.codes.splits[split]["codes"], self.num_code_values)
    if self.has_prior:
      batches = map(self._prior_inputs, self._prior_source.batches(split, _BATCH_SIZE))
      name = "prior_bits_per_code" if self.has_codes else "bits_per_dim"
      measured[name] = bits_per_value(self.prior, batches)
    return measured

  def report_sections(self):
    shown = []
    if self.has_autoencoder:
      for split in self.evaluation_splits:
        images = self.source.examples(split, self.config.report.num_images)
        pairs = np.concatenate([images, to_uint8(self.autoencoder.reconstruct(images))])
        title = f"Originals (above) and reconstructions (below), {split.replace('_', ' ')}"
        shown.append(sections.image_section(title, pairs, len(images)))
    if self.has_prior:
      with np.load(self.workdir.folder("samples") / "samples.npz") as samples:
        title = f"Samples from the prior, temperature {self.config.samples.temperature}"
        shown.append(sections.image_section(title, samples["images"], 8))
    if self.has_codes:
      shown.append(sections.usage_section(self.codes.splits["held_out"]["codes"], self.num_code_values))
    return shown

  def device_endpoints(self):
    return image_endpoints(self.autoencoder, self.source) if self.has_codes else []

  def server_endpoints(self):
    return pixelcnn_endpoints(self.prior, self.codes)

  def signatures(self):
    return image_signatures(self.autoencoder, self.prior, self.source)

  def export_facts(self):
    model = self.autoencoder
    positions = model.encoder.output_shape[1:-1]
    return {
      "num_values": model.quantizer.num_values,
      "autoencoder_sha256": sha256(self.exported_path),
      "image_shape": list(self.image_shape),
      "code_shape": [*positions, *model.quantizer.code_shape],
      "bits_per_image": float(np.prod(positions) * model.quantizer.bits),
    }
