"""Settings that configs share (of data, networks and training), and the choice of a variant."""

from collections.abc import Callable

from ml_collections import ConfigDict

from tfvq.configs.rules import Rules
from tfvq.errors import UserError

RUN_RULES = Rules(
  choices={
    "strategy": ("auto", "default", "cores", "mirrored", "tpu"),
    "precision": ("float32", "float64", "mixed_bfloat16", "mixed_float16"),
    "train.*.optimizer": ("adam", "muon", "pruning_muon"),
    "train.*.schedule": ("cosine", "constant"),
    "pruning.method": ("blocks", "channels", "layers"),
  },
  may_be_zero=(
    "seed",
    "samples.temperature",
    "samples.prior_temperature",
    "train.*.warmup_steps",
    "train.*.clipnorm",
    "train.*.checkpoint_seconds",
  ),
  below={"seed": 2**32, "train.*.beta_2": 1, "pruning.sparsity": 1, "pruning.ramp": 1},
)
_QUANTIZER_RULES = Rules(
  choices={
    "autoencoder.quantizer.kind": (
      "vector",
      "residual",
      "product",
      "finite_scalar",
      "lookup_free",
      "soft_to_hard",
    ),
    "autoencoder.quantizer.codebook_update": ("moving_average", "loss"),
    "autoencoder.quantizer.metric": ("euclidean", "cosine"),
    "autoencoder.quantizer.gradient": ("straight_through", "rotation"),
  },
  may_be_zero=(
    "autoencoder.quantizer.commitment_cost",
    "autoencoder.quantizer.revival_threshold",
    "autoencoder.quantizer.level_dropout",
    "autoencoder.quantizer.entropy_weight",
  ),
  # Codes are stored with 16 bits.
  below={
    "autoencoder.quantizer.decay": 1,
    "autoencoder.quantizer.revival_threshold": 1,
    "autoencoder.quantizer.num_embeddings": 2**16 + 1,
    "autoencoder.quantizer.num_bits": 17,
  },
  at_least={"autoencoder.quantizer.num_embeddings": 2, "autoencoder.quantizer.levels": 2},
)
IMAGE_RULES = _QUANTIZER_RULES | Rules(
  choices={
    "autoencoder.bottleneck": ("vq", "gaussian", "vimco"),
    "autoencoder.distribution": ("gaussian", "logistic"),
  },
  may_be_zero=(
    "data.num_validation_episodes",
    "data.validation_percent",
    "autoencoder.num_encoder_blocks",
    "autoencoder.num_decoder_blocks",
    "prior.dropout",
  ),
  below={"prior.dropout": 1},
  at_least={"autoencoder.num_vimco_samples": 2},  # the gradient compares each sample with the others
)
GRID_RULES = _QUANTIZER_RULES | Rules(may_be_zero=("prior.dropout",), below={"prior.dropout": 1})
# A frame of phones and of loudness is 10 ms, and must be whole samples.
CORPUS_RULES = Rules(choices={"data.sample_rate_hz": range(8000, 48_001, 100)})
WAVENET_RULES = Rules(
  choices={"prior.distribution": ("categorical", "logistic_mixture")}, at_least={"prior.num_values": 2}
)
SPEECH_RULES = (
  _QUANTIZER_RULES
  | WAVENET_RULES
  | Rules(
    choices={
      "autoencoder.encoder": ("waveform", "log_mel"),
      "autoencoder.decoder.distribution": ("categorical", "logistic_mixture"),
    },
    may_be_zero=("autoencoder.mel_weight", "autoencoder.null_rate", "autoencoder.voice_perturbation"),
    below={"autoencoder.null_rate": 1, "autoencoder.voice_perturbation": 1},
    at_least={"autoencoder.decoder.num_values": 2},
  )
)


def choose(variant: str | None, variants: dict[str, Callable[[], ConfigDict]]) -> ConfigDict:
  """Returns the config of a variant; None means `small`.

  Raises:
    UserError: There is no such variant.
  """
  variant = variant or "small"
  if variant not in variants:
    raise UserError(f"There is no variant {variant!r} of this config; choose {' or '.join(variants)}.")
  return variants[variant]()


def run_settings(task: str) -> ConfigDict:
  """The fields that every config has, with their defaults.

  Args:
    task: The class of the system, "module:Class" or "path/to/file.py:Class"; see `tfvq.tasks.find_task`.
  """
  config = ConfigDict()
  config.task = task
  config.seed = 0
  # auto | default | cores | mirrored | tpu. auto: tpu if there is one, or mirrored if there are several accelerators.
  # cores: a replica on each core of the CPU.
  config.strategy = "auto"
  config.precision = "float32"  # or mixed_bfloat16, mixed_float16: a Keras dtype policy
  config.samples = ConfigDict({"num": 16, "temperature": 1.0})
  config.report = ConfigDict({"num_images": 12})
  config.train = ConfigDict()
  return config


def training(steps: int, batch_size: int, learning_rate: float, **changes) -> ConfigDict:
  """Settings of one training stage. The learning rate warms up and then decays to almost zero.

  Args:
    steps: Number of optimiser steps.
    batch_size: Number of examples per step, over all replicas.
    learning_rate: The highest learning rate.
    **changes: Values of other fields that differ from the defaults.
  """
  settings = ConfigDict(
    {
      "steps": steps,
      "initial_weights": "",  # a checkpoint of the same architecture to start from, without its optimiser state
      "batch_size": batch_size,
      "optimizer": "adam",  # or muon, which needs fewer steps; or pruning_muon, for pruning
      "learning_rate": learning_rate,
      "adam_lr_ratio": 0.4,  # muon: learning rate of biases and embeddings, as a multiple of learning_rate
      "warmup_steps": 100,
      "schedule": "cosine",  # or constant, as in the paper
      "beta_2": 0.95,
      "clipnorm": 0.0,  # largest global norm of the gradients; 0 for no clipping
      "log_every_steps": 50,
      "checkpoint_seconds": 30.0,
      "jit_compile": False,
      "bfloat16_products": False,  # matrix products of a WaveNet; faster on CPUs with AVX512-BF16 or AMX
    }
  )
  settings.update(changes)
  return settings


def quantizer(**changes) -> ConfigDict:
  """Settings of the quantiser of an autoencoder; each kind uses some of them."""
  settings = ConfigDict(
    {
      "kind": "vector",  # or residual, product, finite_scalar, lookup_free, soft_to_hard
      # vector, residual, product, soft_to_hard:
      "num_embeddings": 512,  # of each codebook
      # vector, residual, product:
      "codebook_update": "moving_average",  # or loss: the gradient of eq. 3
      "decay": 0.99,
      "revival_threshold": 0.03,
      "gradient": "straight_through",  # or rotation
      # vector, product:
      "metric": "euclidean",  # or cosine
      # vector, residual, product, lookup_free:
      "commitment_cost": 0.25,
      # residual:
      "num_levels": 4,
      "level_dropout": 0.5,  # fraction of the training examples that only the first levels quantise
      # product:
      "num_groups": 4,  # groups of channels
      # finite_scalar:
      "levels": (8, 5, 5, 5),  # number of levels of each channel
      # lookup_free:
      "num_bits": 9,
      "entropy_weight": 0.1,
      # soft_to_hard:
      "initial_hardness": 1.0,
      "final_hardness": 1000.0,
      "annealing_steps": 10_000,
    }
  )
  settings.update(changes)
  return settings


def autoencoder(**changes) -> ConfigDict:
  """Settings of the autoencoder; the defaults are the paper's sizes."""
  settings = ConfigDict(
    {
      "bottleneck": "vq",  # or gaussian (VAE), vimco
      "distribution": "gaussian",  # of pixels given the latents; or logistic, which gives bits per dimension
      "hidden_units": 256,
      "stem_units": 256,
      "residual_units": 256,
      "num_encoder_blocks": 2,  # number of residual blocks
      "num_decoder_blocks": 2,
      "num_downsamplings": 2,
      "latents_per_position": 1,
      "embedding_dim": 64,
      "quantizer": quantizer(),
      "num_vimco_samples": 50,
    }
  )
  settings.update(changes)
  return settings


def pixelcnn(**changes) -> ConfigDict:
  """Settings of a PixelCNN."""
  settings = ConfigDict(
    {
      "filters": 128,
      "num_layers": 15,
      "kernel_size": 5,
      "hidden_units": 512,
      "dropout": 0.1,
      "class_conditional": False,
    }
  )
  settings.update(changes)
  return settings


def pruning(**changes) -> ConfigDict:
  """Settings of the stage `prune`, which removes parts of the decoder during further training."""
  settings = ConfigDict(
    {
      "method": "channels",  # or layers; or blocks of weights, which are set to zero
      "sparsity": 0.5,  # fraction that is removed
      "ramp": 0.2,  # fraction of the steps in which it is removed; then the other weights adapt
      "block_size": 16,  # blocks: consecutive inputs of an output; use 4 for float32, 16 for int8
    }
  )
  settings.update(changes)
  return settings


def cifar10_data() -> ConfigDict:
  """CIFAR-10 from TensorFlow Datasets."""
  return ConfigDict(
    {
      "source": "tfds",
      "name": "cifar10",
      "held_out": "test",
      "validation_percent": 5,  # of the training images
      "image_size": 32,
      "data_dir": "",
    }
  )


def speech_data(**changes) -> ConfigDict:
  """Settings of a corpus of speech; each source uses some of them."""
  settings = ConfigDict(
    {
      "source": "asterisk",  # or fillets, festvox_ru, espeak, tfds, folder, piano: see tfvq/data/speech_sources.py
      "languages": (),  # asterisk: en, es, fr, it, ru; fillets: cs, nl; all if empty
      "composers": ("bach",),  # piano
      "voices": ("en-us+m1", "en-us+m3", "en-us+f2", "en-us+f4"),  # espeak
      "num_sentences": 100,  # espeak
      "name": "vctk",  # tfds: or librispeech
      "splits": (),  # tfds: splits to read; all if empty
      "data_dir": "",  # tfds
      "source_sample_rate_hz": 48_000,  # tfds: for data sets that do not declare it
      "folder": "",  # folder: audio files, a sub-folder per speaker
      "cache": "~/.cache/tfvq/debian",
      "sample_rate_hz": 16_000,  # recordings are resampled to it; a multiple of 100 from 8000 to 48,000
      "crop_samples": 4096,  # length of a training example
    }
  )
  settings.update(changes)
  return settings


def speech_autoencoder(**changes) -> ConfigDict:
  """Settings of a speech autoencoder except `decoder`; all defaults except the last two are the paper's."""
  settings = ConfigDict(
    {
      "encoder": "waveform",  # or log_mel
      "strides": (2, 2, 2, 2, 2, 2),  # their product is samples per frame; waveform: of its convolutions
      "latents_per_position": 1,  # latents per frame
      "encoder_units": 256,
      "embedding_dim": 64,
      "quantizer": quantizer(),
      "encoder_dilations": (),  # of residual blocks after the log_mel encoder's convolutions
      "voice_perturbation": 0.0,  # log_mel: scale of VoicePerturbation; 0.25 removes much of the voice from the codes
      "condition_dim": 128,
      "condition_dilations": (),  # of residual blocks after the conditioner's convolutions
      "null_rate": 0.1,  # fraction of the crops for which the decoder gets the null condition instead of codes
      "mel_weight": 1.0,  # weight of the error of the log-mel spectrogram that is predicted from the condition
    }
  )
  settings.update(changes)
  return settings


def wavenet(**changes) -> ConfigDict:
  """Settings of a WaveNet; the dilations of a stack are 1, 2, 4, ..."""
  settings = ConfigDict(
    {
      "distribution": "categorical",  # of each value; or logistic_mixture
      "channels": 64,
      "num_stacks": 2,
      "layers_per_stack": 10,
      "hidden_units": 64,
    }
  )
  settings.update(changes)
  return settings


def audio_wavenet(**changes) -> ConfigDict:
  """Settings of a WaveNet of audio, and of the values that represent audio."""
  settings = wavenet(
    num_bands=1,  # number of sub-bands
    num_values=256,  # up to 256 with mu-law companding; more are linear
  )
  settings.update(changes)
  return settings
