"""A WaveNet of speech of several speakers, without text.

Source: arXiv 1609.03499, section 3.1 (VCTK, 109 speakers), shown in the VQ-VAE talk.

  python train_main.py --config=tfvq/configs/wavenet.py:small --workdir=runs/wavenet

`small` (default) models four professional speakers in eight sub-bands, on two cores. `paper` models VCTK without
sub-bands and needs an accelerator. The samples in the paper sound like speech without meaning; their quality is not
measured.
"""

from ml_collections import ConfigDict

from tfvq.configs import common


def get_config(variant=None):
  return common.choose(variant, {"small": small, "paper": paper})


def small():
  config = common.run_settings("tfvq.tasks.wavenet:WaveNetTask")
  config.phones = False
  config.data = common.speech_data(source="asterisk", crop_samples=8192)
  config.prior = common.audio_wavenet(num_bands=8, channels=96, num_stacks=2, layers_per_stack=8, hidden_units=32)
  config.train.prior = common.training(steps=2000, batch_size=4, learning_rate=4e-3, optimizer="muon")
  config.samples = ConfigDict({"num": 4, "seconds": 3, "temperature": (0.8, 0.8, 0.9, 0.9, 1.0, 1.0, 1.0, 1.0)})
  return config


def paper():
  config = small()
  config.data = common.speech_data(source="tfds", name="vctk", crop_samples=16_000)
  config.prior = common.audio_wavenet(channels=256, num_stacks=3, layers_per_stack=10, hidden_units=256)
  config.train.prior = common.training(steps=500_000, batch_size=32, learning_rate=2e-4)
  config.samples = ConfigDict({"num": 8, "seconds": 5, "temperature": (1.0,)})
  return config
