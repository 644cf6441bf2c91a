"""Checks of a config, made before anything starts, so that no run fails hours later for a wrong value."""

import math
import pathlib
import re

from ml_collections import ConfigDict

from tfvq.errors import UserError
from tfvq.startup import import_tensorflow

_CHOICES = {
  "task": ("images", "speech", "wavenet"),
  "strategy": ("auto", "default", "cores", "mirrored", "tpu"),
  "precision": ("float32", "float64", "mixed_bfloat16", "mixed_float16"),
  "autoencoder.encoder": ("waveform", "log_mel"),
  "autoencoder.decoder.distribution": ("categorical", "logistic_mixture"),
  "prior.distribution": ("categorical", "logistic_mixture"),
  "autoencoder.bottleneck": ("vq", "gaussian", "vimco"),
  "autoencoder.distribution": ("gaussian", "logistic"),
  "autoencoder.codebook_update": ("moving_average", "loss"),
  "pruning.method": ("blocks", "channels", "layers"),
  "train.*.optimizer": ("adam", "muon", "pruning_muon"),
  "train.*.schedule": ("cosine", "constant"),
}
# Fields that may be zero; every other number must be positive.
_MAY_BE_ZERO = (
  "seed",
  "data.num_validation_episodes",
  "data.validation_percent",
  "samples.temperature",
  "samples.prior_temperature",
  "autoencoder.commitment_cost",
  "autoencoder.mel_weight",
  "autoencoder.null_rate",
  "autoencoder.revival_threshold",
  "autoencoder.voice_perturbation",
  "autoencoder.num_encoder_blocks",
  "autoencoder.num_decoder_blocks",
  "prior.dropout",
  "train.*.warmup_steps",
  "train.*.clipnorm",
  "train.*.checkpoint_seconds",
)
_BELOW = {
  "seed": 2**32,
  "autoencoder.decay": 1,
  "autoencoder.null_rate": 1,
  "autoencoder.revival_threshold": 1,
  "autoencoder.voice_perturbation": 1,
  "prior.dropout": 1,
  "train.*.beta_2": 1,
  "pruning.sparsity": 1,
  "pruning.ramp": 1,
}
# A distribution needs two values, and the bound of VIMCO compares each sample with the others.
_TWO_OR_MORE = ("num_values", "num_embeddings", "num_vimco_samples")
_MAX_EMBEDDINGS = 2**16


def validate(config: ConfigDict) -> None:
  """Checks a config.

  Raises:
    UserError: A field is missing or has a value that cannot work; the sentence names the field.
  """
  _require(config, "task", "seed", "strategy", "precision", "data.source", "train")
  for name, value in fields(config):
    kind = re.sub(r"^train\.\w+", "train.*", name)  # all stages have the same fields
    if kind in _CHOICES and value not in _CHOICES[kind]:
      raise UserError(f"config.{name} is {value!r}; choose one of {', '.join(_CHOICES[kind])}.")
    for number in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(number, bool) or not isinstance(number, (int, float)):
        continue
      if not number >= 0 or (number == 0 and kind not in _MAY_BE_ZERO):
        least = "zero or more" if kind in _MAY_BE_ZERO else "positive"
        raise UserError(f"config.{name} is {value}; it must be {least}.")
      if number == math.inf:
        raise UserError(f"config.{name} is {value}; it must be finite.")
      if number >= _BELOW.get(kind, math.inf):
        raise UserError(f"config.{name} is {value}; it must be less than {_BELOW[kind]}.")
      if kind.rpartition(".")[2] in _TWO_OR_MORE and number < 2:
        raise UserError(f"config.{name} is {value}; it must be 2 or more.")
      if kind == "autoencoder.num_embeddings" and number > _MAX_EMBEDDINGS:
        raise UserError(
          f"config.{name} is {value}; it must be {_MAX_EMBEDDINGS} or less, because a code is stored in 16 bits."
        )
    if kind == "train.*.initial_weights" and value and not pathlib.Path(value).is_file():
      raise UserError(f"config.{name} is {value!r}, and there is no such file: name a checkpoint.")
  _VALIDATE[config.task](config)
  _validate_source(config)


def _validate_source(config):
  # Imported here, and last: the sources import TensorFlow, which no other check waits for.
  import_tensorflow()
  from tfvq.data import image_sources, speech_sources

  sources = (image_sources if config.task == "images" else speech_sources).SOURCES
  if config.data.source not in sources:
    raise UserError(f"config.data.source is {config.data.source!r}; choose one of {', '.join(sorted(sources))}.")
  if config.get("phones") and config.data.source not in speech_sources.WITH_PHONES:
    raise UserError(
      f"config.phones needs a source whose phones are known: config.data.source is {config.data.source}; choose one of "
      f"{', '.join(speech_sources.WITH_PHONES)}, or set config.phones to False."
    )


def _require(config, *names):
  """Checks that a config has these fields or sections."""
  for name in names:
    section, keys = config, name.split(".")
    for depth, key in enumerate(keys, start=1):
      if key not in section:
        raise UserError(f"config.{'.'.join(keys[:depth])} is missing; add it as the files in tfvq/configs do.")
      section = section[key]


def _validate_images(config):
  _require(config, "data.image_size", "report")
  if "autoencoder" not in config and "prior" not in config:
    raise UserError("config.autoencoder and config.prior are missing; set at least one of them.")
  if "autoencoder" in config:
    _require(config, "train.autoencoder")
  if "prior" in config and ("autoencoder" not in config or config.autoencoder.bottleneck == "vq"):
    _require(config, "train.prior", "samples")
  below = 90 if config.data.source == "photos" else 100  # of the photographs, a tenth is held out
  if config.data.get("validation_percent", 0) >= below:
    raise UserError(
      f"config.data.validation_percent is {config.data.validation_percent}; it must be less than {below}, or "
      "nothing is left to train on."
    )
  if "prior" in config and config.prior.kernel_size % 2 == 0:
    raise UserError(f"config.prior.kernel_size is {config.prior.kernel_size}; it must be odd.")
  if "autoencoder" in config:
    stride = 2**config.autoencoder.num_downsamplings
    if config.data.image_size % stride:
      raise UserError(
        f"config.data.image_size is {config.data.image_size}, which the encoder's total stride of {stride} "
        "(2 ** config.autoencoder.num_downsamplings) does not divide."
      )


def _validate_speech(config):
  _require(config, "autoencoder.decoder", "prior.window_frames", "train.autoencoder", "train.prior", "samples")
  if "spectral" in config.train:
    _require(config, "train.unquantized")
  if "prune" in config.train:
    _require(config, "pruning")
    if config.train.prune.optimizer == "muon":
      raise UserError("config.train.prune.optimizer is muon, which cannot prune; choose adam or pruning_muon.")
  hop_samples = math.prod(config.autoencoder.strides)
  if config.data.crop_samples % hop_samples:
    raise UserError(
      f"config.data.crop_samples is {config.data.crop_samples}; it must be a multiple of the {hop_samples} samples per "
      "frame, which are the product of config.autoencoder.strides."
    )
  num_bands = config.autoencoder.decoder.num_bands
  if hop_samples % num_bands:
    raise UserError(
      f"config.autoencoder.decoder.num_bands is {num_bands}; it must divide the {hop_samples} samples per frame, which "
      "are the product of config.autoencoder.strides."
    )
  if config.autoencoder.voice_perturbation and config.autoencoder.encoder != "log_mel":
    raise UserError(
      f"config.autoencoder.voice_perturbation changes spectra, and config.autoencoder.encoder is "
      f"{config.autoencoder.encoder}; choose the encoder log_mel, or set the perturbation to 0."
    )
  _validate_temperature(config, num_bands)


def _validate_wavenet(config):
  from tfvq.ops.loudness import FRAME_SAMPLES  # imports TensorFlow too

  _require(config, "phones", "prior", "train.prior", "samples")
  num_bands, crop_samples = config.prior.num_bands, config.data.crop_samples
  if crop_samples % num_bands or FRAME_SAMPLES % num_bands:
    raise UserError(
      f"config.prior.num_bands is {num_bands}; it must divide both {FRAME_SAMPLES}, the samples of a frame, and "
      f"config.data.crop_samples, which is {crop_samples}."
    )
  if config.phones and crop_samples % FRAME_SAMPLES:
    raise UserError(
      f"config.data.crop_samples is {crop_samples}; with config.phones it must be a multiple of {FRAME_SAMPLES}, the "
      "samples per frame of the phones."
    )
  _validate_temperature(config, num_bands)


def _validate_temperature(config, num_bands):
  if len(config.samples.temperature) not in (1, num_bands):
    raise UserError(
      f"config.samples.temperature has {len(config.samples.temperature)} values; give one, or one for each of the "
      f"{num_bands} bands."
    )


_VALIDATE = {"images": _validate_images, "speech": _validate_speech, "wavenet": _validate_wavenet}


def fields(config, prefix="") -> list[tuple[str, object]]:
  """Pairs (dotted name, value) of all fields of a config."""
  pairs = []
  for key, value in config.items():
    pairs += fields(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else [(f"{prefix}{key}", value)]
  return pairs
