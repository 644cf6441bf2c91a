"""Systems of images: frames, photographs, CIFAR-10, ImageNet, and PixelCNN on pixels. They differ in their data."""

import functools

import numpy as np
import tensorflow as tf
import tqdm

from tfvq import models
from tfvq.data.image_sources import open_image_source
from tfvq.errors import UserError
from tfvq.evaluation import figures, sections
from tfvq.files import atomic_write
from tfvq.tasks.task import AutoencoderTask, build_quantizer

_BATCH_SIZE = 64  # for encoding and evaluation


class ImageTask(AutoencoderTask):
  """Image systems; the config has `data`, and `autoencoder`, `prior` or both."""

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
        encoder(config.num_embeddings),
        decoder,
        config.num_embeddings,
        config.embedding_dim,
        num_samples=config.num_vimco_samples,
        seed=self.config.seed,
      )
    quantizer = build_quantizer(config, self.config.seed)
    return models.VQVAE(encoder(config.embedding_dim), quantizer, decoder)

  def autoencoder_batches(self, batch_size, step):
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

  def encode_splits(self, autoencoder):
    encode = tf.function(autoencoder.encode, reduce_retracing=True)
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
    return splits

  @property
  def num_classes(self):
    return self.source.num_classes

  def build_prior(self, manifest):
    if manifest:
      num_values, grid_shape = manifest["num_embeddings"], tuple(manifest["code_shape"])
    else:
      num_values, grid_shape = 256, self.image_shape
    config = self.config.prior
    return models.PixelCNN(
      num_values,
      grid_shape,
      filters=config.filters,
      num_layers=config.num_layers,
      kernel_size=config.kernel_size,
      hidden_units=config.hidden_units,
      dropout=config.dropout,
      ordinal=manifest is None,
      num_classes=self.num_classes if config.class_conditional else 0,
    )

  def prior_batches(self, codes, batch_size, step):
    source = codes or self.source
    return source.train(batch_size, self.config.seed, step).map(self._prior_inputs)

  def _prior_inputs(self, batch):
    """A batch as the prior's `fit` takes it: values, or ((values, condition),)."""
    x = batch["codes"] if "codes" in batch else batch["image"]
    return ((x, {"label": batch["label"]}),) if self.config.prior.class_conditional else x

  def write_samples(self, run, folder):
    prior, num = run.prior, self.config.samples.num
    condition = None
    if self.config.prior.class_conditional:
      condition = {"label": tf.range(num, dtype=tf.int32) % prior.num_classes}
    noise = models.gumbel_noise(self.config.seed, models.noise_shape(prior, num))
    values = tf.function(models.sample)(prior, noise, condition, self.config.samples.temperature)
    images = figures.to_uint8(run.autoencoder.decode(values) if self.has_codes else values)
    with atomic_write(folder / "samples.npz") as temporary:
      np.savez(temporary, values=values, images=images)
    sections.save_image_grid(folder / "samples.png", images, num_columns=8)

  def measure(self, run, split):
    measured = {}
    if "autoencoder" in self.stages:
      images = (batch["image"] for batch in self.source.batches(split, _BATCH_SIZE))
      reconstruct = tf.function(run.autoencoder.reconstruct, reduce_retracing=True)
      measured["reconstruction_psnr_db"] = figures.psnr_db(images, reconstruct)
      if run.autoencoder.decoder.discrete:
        run.autoencoder.compile()
        batches = self.source.batches(split, _BATCH_SIZE).map(lambda batch: batch["image"])
        measured["autoencoder_bits_per_dim"] = run.autoencoder.evaluate(batches, verbose=0, return_dict=True)[
          "bits_per_dim"
        ]
    if self.has_codes:
      measured |= figures.code_statistics(run.codes.splits[split]["codes"], run.manifest["num_embeddings"])
    if "prior" in self.stages:
      values = run.codes or self.source
      bits = figures.bits_per_value(run.prior, map(self._prior_inputs, values.batches(split, _BATCH_SIZE)))
      measured["prior_bits_per_code" if self.has_codes else "bits_per_dim"] = bits
    return measured

  def report_sections(self, run):
    shown = []
    if "autoencoder" in self.stages:
      for split in self.evaluation_splits:
        images = self.source.examples(split, self.config.report.num_images)
        pairs = np.concatenate([images, figures.to_uint8(run.autoencoder.reconstruct(images))])
        title = f"Originals (above) and reconstructions (below), {split.replace('_', ' ')}"
        shown.append(sections.image_section(title, pairs, len(images)))
    if "prior" in self.stages:
      with np.load(run.workdir.folder("samples") / "samples.npz") as samples:
        title = f"Samples from the prior, temperature {self.config.samples.temperature}"
        shown.append(sections.image_section(title, samples["images"], 8))
    if self.has_codes:
      codes = run.codes.splits["held_out"]["codes"]
      shown.append(sections.usage_section(codes, run.manifest["num_embeddings"]))
    return shown
