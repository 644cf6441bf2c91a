"""Global latents: a second VQ-VAE, whose data are the codes of a finished run, and whose decoder is a PixelCNN."""

import functools

import numpy as np
import tensorflow as tf
import tqdm

from tfvq import models
from tfvq.configs.common import GRID_RULES
from tfvq.configs.rules import require
from tfvq.endpoints.endpoint import LOOK_UP, Endpoint, integers
from tfvq.errors import UserError
from tfvq.evaluation import sections
from tfvq.evaluation.metrics import Metric, bits_per_value, code_statistics, mean_bits, to_uint8
from tfvq.files import atomic_write
from tfvq.layers import build_quantizer
from tfvq.tasks.autoencoder_task import AutoencoderTask, check_quantizer
from tfvq.tasks.images import ImageTask
from tfvq.tasks.pixelcnn import build_pixelcnn, check_pixelcnn
from tfvq.tasks.stages import open_task
from tfvq.tasks.task import Stage

_BATCH_SIZE = 64
_NUM_LAYOUTS = 256  # images whose layout is measured
_LAYOUT_SIZE = 8


class GlobalLatentsTask(AutoencoderTask):
  """The images of another run as a few codes; the config has `data.workdir`, `autoencoder` and `prior`.

  The stage `prior` trains the decoder's PixelCNN without latents, for comparison.
  """

  rules = GRID_RULES
  metrics = (
    Metric("bits_per_image", "bits per image"),
    Metric("bits_per_code_given_latents", "bits per code of the first stage, given the latents"),
    Metric("prior_bits_per_code", "... with the same PixelCNN without latents"),
    Metric("bits_saved_per_code", "... saved by the latents"),
    Metric("smallest_perplexity", "smallest perplexity of a latent"),
    Metric("layout_accuracy", "draws whose 8x8 layout is nearer to their own image than to another", "%"),
  )

  @classmethod
  def validate(cls, config):
    require(config, "data.workdir", "autoencoder.quantizer", "prior", "train.autoencoder", "train.prior", "samples")
    super().validate(config)
    check_quantizer(config.autoencoder)
    check_pixelcnn(config.prior)
    for name in ("steps", "batch_size"):
      if config.train.prior[name] != config.train.autoencoder[name]:
        raise UserError(
          f"config.train.prior.{name} is {config.train.prior[name]}; it must be config.train.autoencoder.{name}, "
          f"{config.train.autoencoder[name]}, because the prior is compared with the decoder."
        )

  @property
  def stages(self):
    return (
      Stage("data", self.data_stage),
      Stage("autoencoder", self.autoencoder_stage, reads=("data",), trains=True),
      Stage("codes", self.codes_stage, reads=("autoencoder",)),
      Stage("prior", self.prior_stage, reads=("data",), trains=True),
      Stage("samples", self.samples_stage, reads=("codes",)),
      Stage("evaluation", self.evaluation_stage, reads=("samples", "prior")),
    )

  @functools.cached_property
  def first_stage(self):
    """The task of the run whose codes are the data.

    Raises:
      UserError: It has no codes of images, or not those that this run began with.
    """
    workdir = self.config.data.workdir
    task = open_task(workdir)
    if not isinstance(task, ImageTask) or not task.has_codes or not task.workdir.is_done("codes"):
      raise UserError(
        f"{workdir} has no codes of images: set config.data.workdir to a run of images whose stage `codes` is done."
      )
    shape = task.manifest["features"]["codes"]["shape"]
    if len(shape) != 2:
      raise UserError(f"The codes in {workdir} have the shape {shape}; config.data.workdir must have codes [H, W].")
    if self.workdir.is_done("data") and self.workdir.facts("data")["first_stage"] != _identity(task):
      raise UserError(f"{self.workdir.path} was trained on other codes than {workdir} has: choose another --workdir.")
    return task

  @property
  def grid_shape(self) -> tuple[int, int]:
    """(H, W) of the first stage's codes."""
    return tuple(self.first_stage.manifest["features"]["codes"]["shape"])

  def prepare_data(self):
    codes = self.first_stage.codes
    return {
      "first_stage": _identity(self.first_stage),
      "num_examples": {split: codes.num_examples(split) for split in codes.split_names},
    }

  def build_autoencoder(self):
    config = self.config.autoencoder
    encoder = models.grid_encoder(
      self.first_stage.num_code_values, self.grid_shape, config.embedding_dim, config.hidden_units
    )
    network = models.grid_decoder(self.grid_shape, config.embedding_dim, config.condition_dim, config.hidden_units)
    decoder = models.AutoregressiveDecoder(network, self._pixelcnn(condition_dim=config.condition_dim))
    return models.VQVAE(encoder, build_quantizer(config.quantizer, config.embedding_dim, self.config.seed), decoder)

  def autoencoder_batches(self, model, batch_size, step):
    del model
    return self.prior_batches(batch_size, step)

  def prior_batches(self, batch_size, step):
    return self.first_stage.codes.train(batch_size, self.config.seed, step).map(lambda batch: batch["codes"])

  def prepare_autoencoder(self, model, train_part):
    del train_part
    model.adapt(self.first_stage.codes.splits["train"]["codes"][: 8 * _BATCH_SIZE])

  def encode_splits(self):
    encode = tf.function(self.autoencoder.encode, reduce_retracing=True)
    splits = {
      split: {"codes": np.concatenate([encode(batch).numpy() for batch in self._batches(split)])}
      for split in self.first_stage.codes.split_names
    }
    return splits, {"codes": self.autoencoder.quantizer.num_values}

  def _batches(self, split):
    """The first stage's codes of a split in batches."""
    codes = self.first_stage.codes.splits[split]["codes"]
    return [codes[start : start + _BATCH_SIZE] for start in range(0, len(codes), _BATCH_SIZE)]

  def build_prior(self):
    return self._pixelcnn()

  def _pixelcnn(self, **condition):
    return build_pixelcnn(self.config.prior, self.first_stage.num_code_values, self.grid_shape, **condition)

  @functools.cached_property
  def _draw(self):
    """Draws first-stage codes given latents, compiled: (latents int32 [B, ...], seed) -> int32 [B, H, W]."""
    decoder, quantizer = self.autoencoder.decoder, self.autoencoder.quantizer

    @functools.partial(tf.function, reduce_retracing=True)
    def draw(latents, seed):
      noise = models.gumbel_noise(seed, decoder.noise_shape(tf.shape(latents)[0]))
      return decoder.sample(quantizer.decode(latents), noise, temperature=self.config.samples.temperature)

    return draw

  def write_samples(self, folder):
    """Writes held-out images, their reconstructions by the first stage, and several draws from the latents of each."""
    originals, codes, latents = self._spread("held_out", self.config.samples.num)
    drawn = [self._draw(latents, self.config.seed + number).numpy() for number in range(self.config.samples.num_draws)]
    images = np.stack([originals, *(self._images(each) for each in (codes, *drawn))])
    with atomic_write(folder / "samples.npz") as temporary:
      np.savez(temporary, latents=latents, codes=np.stack(drawn), images=images)
    sections.save_image_grid(folder / "samples.png", np.concatenate(images), num_columns=len(originals))

  def _spread(self, split, num):
    """Images spread evenly over a split, with their codes and latents."""
    codes, latents = (task.codes.splits[split]["codes"] for task in (self.first_stage, self))
    images = np.concatenate([batch["image"].numpy() for batch in self.first_stage.source.batches(split, _BATCH_SIZE)])
    chosen = np.linspace(0, len(codes) - 1, min(num, len(codes))).astype(int)
    return images[chosen], codes[chosen], latents[chosen]

  def _images(self, codes):
    """Images of the first stage's codes, uint8 [B, height, width, channels]."""
    return to_uint8(self.first_stage.autoencoder.decode(codes))

  def measure(self, split):
    latents = self.codes.splits[split]["codes"]
    latents = latents.reshape(len(latents), -1)
    perplexities = [code_statistics(latent, self.num_code_values)["perplexity"] for latent in latents.T]
    given = mean_bits(self._log_prob_given_latents, self._batches(split))
    prior = bits_per_value(self.prior, self._batches(split))
    return {
      "bits_per_image": float(self.autoencoder.quantizer.bits),
      "bits_per_code_given_latents": given,
      "prior_bits_per_code": prior,
      "bits_saved_per_code": prior - given,
      "smallest_perplexity": min(perplexities),
      **{f"perplexity_{number}": value for number, value in enumerate(perplexities)},
      "layout_accuracy": self._layout_accuracy(split),
    }

  def _log_prob_given_latents(self, x, condition):
    """Log-likelihood in nats of the first stage's codes, given their latents, [B, H, W] -> [B]."""
    model = self.autoencoder
    return model.decoder.log_prob(x, model.quantizer.decode(model.encode(x)), condition)

  def _layout_accuracy(self, split):
    """Fraction of draws from latents that, at 8x8 pixels, are nearer to their own image than to another random one."""
    originals, _, latents = self._spread(split, _NUM_LAYOUTS)
    starts = tqdm.trange(0, len(latents), _BATCH_SIZE, desc=f"layout {split}", unit="batch", dynamic_ncols=True)
    drawn = [self._images(self._draw(latents[start : start + _BATCH_SIZE], self.config.seed)) for start in starts]
    own, found = _layouts(originals), _layouts(np.concatenate(drawn))
    others = np.arange(len(own)) + np.random.default_rng(0).integers(1, len(own), len(own))
    distance = lambda images: np.sum(np.square(images - found), axis=(1, 2, 3))
    return float(np.mean(distance(own) < distance(own[others % len(own)])))

  @property
  def evaluation_splits(self):
    """Every split but "train"."""
    return tuple(split for split in self.first_stage.codes.split_names if split != "train")

  def report_sections(self):
    with np.load(self.workdir.folder("samples") / "samples.npz") as samples:
      images = samples["images"]
    title = (
      "From above: held-out images, their reconstructions by the first stage, and draws from their "
      f"{self.autoencoder.quantizer.bits:.0f} bits"
    )
    return [sections.image_section(title, images.reshape(-1, *images.shape[2:]), images.shape[1])]

  def device_endpoints(self):
    model = self.autoencoder

    def encode(image_codes):
      z_e = model.encoder(image_codes)
      return {"codes": model.quantizer.encode(z_e, exact=False), "z_e": z_e}

    def examples(split):
      codes = self.first_stage.codes.splits[split]["codes"]
      return ({"image_codes": codes[row : row + 1]} for row in range(len(codes)))

    inputs = {"image_codes": integers(1, *self.grid_shape)}
    ranges = {"image_codes": (0, self.first_stage.num_code_values - 1)}
    return [Endpoint("encoder", encode, inputs, model, examples, ranges=ranges, kept_in_float=LOOK_UP)]


def _identity(task):
  """What identifies the codes of a run."""
  manifest = task.manifest
  return [manifest["autoencoder_sha256"], *(shard["sha256"] for shard in manifest["shards"])]


def _layouts(images):
  """Images at 8x8 pixels, uint8 [N, height, width, channels] -> float [N, 8, 8, channels]."""
  return tf.image.resize(tf.cast(images, tf.float32), [_LAYOUT_SIZE, _LAYOUT_SIZE], method="area").numpy()
