"""Small configs, whose whole runs take seconds."""

import importlib

IMAGES = ("frames", "photos", "cifar10", "imagenet", "pixelcnn")
WAVENETS = ("wavenet", "piano", "tts")
ON_OTHER_RUNS = ("global_latents",)  # their data are the codes of a finished run
NAMES = (*IMAGES, "speech", *WAVENETS, *ON_OTHER_RUNS)


def config_of(name, variant="small"):
  """The config of a system."""
  return importlib.import_module(f"tfvq.configs.{name}").get_config(variant)


def tiny(name, folder="", data_dir=""):
  """A system's `small` config with reduced sizes; `folder` contains pictures or a run, `data_dir` a TFDS data set."""
  config = config_of(name)
  for settings in config.train.values():
    settings.update({"steps": 6, "batch_size": 4, "log_every_steps": 2, "checkpoint_seconds": 0.0})
  if name == "speech":
    return tiny_speech(config)
  if name in WAVENETS:
    return tiny_wavenet(config)
  if name in ON_OTHER_RUNS:
    return tiny_on_other_run(config, folder)
  data = {
    "frames": {
      "image_size": 16,
      "num_train_episodes": 2,
      "num_validation_episodes": 1,
      "num_held_out_episodes": 1,
      "train_frames_per_episode": 10,
      "held_out_frames_per_episode": 6,
    },
    "photos": {"image_size": 16, "folder": str(folder), "shorter_side": 64},
    "cifar10": {"image_size": 16, "data_dir": str(data_dir)},
    "imagenet": {"image_size": 16, "data_dir": str(data_dir)},
    "pixelcnn": {
      "image_size": 8,
      "scenarios": ("basic", "take_cover"),
      "num_train_episodes": 1,
      "num_validation_episodes": 1,
      "num_held_out_episodes": 1,
      "frames_per_episode": 8,
    },
  }
  config.data.update(data[name])
  if "autoencoder" in config:
    config.autoencoder.update({"hidden_units": 8, "stem_units": 4, "residual_units": 4, "embedding_dim": 4})
    config.autoencoder.quantizer.num_embeddings = 16
    config.autoencoder.latents_per_position = min(config.autoencoder.latents_per_position, 2)
    config.autoencoder.num_vimco_samples = 2
  config.prior.update({"filters": 8, "num_layers": 2, "hidden_units": 16})
  config.samples.num = 3
  config.report.num_images = 2
  return config


def tiny_speech(config):
  """Reduces a speech config; it has two synthetic voices."""
  config.data.update({"source": "espeak", "voices": ("en-us+m1", "en-us+f2"), "num_sentences": 40})
  config.data.crop_samples = 1024
  config.autoencoder.update({"encoder_units": 8, "embedding_dim": 4, "condition_dim": 8})
  config.autoencoder.quantizer.num_embeddings = 16
  config.autoencoder.strides = (2,) * 6
  config.train.unquantized.steps = 2
  config.train.prune.checkpoint_seconds = 0.0
  config.autoencoder.decoder.update({"channels": 8, "layers_per_stack": 3, "hidden_units": 8})
  config.prior.update({"channels": 8, "layers_per_stack": 3, "hidden_units": 8, "window_frames": 60})
  config.samples.num = 2
  return config


def tiny_wavenet(config):
  """Reduces the config of a WaveNet alone; it has two synthetic voices."""
  config.data.update({"source": "espeak", "voices": ("en-us+m1", "en-us+f2"), "num_sentences": 40, "crop_samples": 800})
  config.prior.update({"channels": 8, "layers_per_stack": 3, "hidden_units": 8})
  config.samples.num = 2
  config.samples.seconds = 1
  return config


def tiny_on_other_run(config, folder):
  """Reduces a config whose data are the codes of the run in `folder`."""
  config.data.workdir = str(folder)
  config.autoencoder.update({"hidden_units": 8, "embedding_dim": 12, "condition_dim": 4})
  config.autoencoder.quantizer.num_embeddings = 8
  config.prior.update({"filters": 8, "num_layers": 2, "hidden_units": 16})
  config.samples.update({"num": 3, "num_draws": 2})
  return config
