"""A WaveNet of piano music.

Source: arXiv 1609.03499, section 3.3 (60 hours of piano recordings), shown in the VQ-VAE talk. Here the data are scores
from music21's corpus, played on a sampled piano.

  pip install --no-deps -r requirements-piano.txt
  python train_main.py --config=tfvq/configs/piano.py:small --workdir=runs/piano

`small` (default) models Bach's chorales in eight sub-bands, on two cores. `paper` is larger, has no sub-bands, and is
for your own recordings: --config.data.source=folder --config.data.folder=DIR. The paper reports no metrics.
"""

from ml_collections import ConfigDict

from tfvq.configs import common


def get_config(variant=None):
  return common.choose(variant, {"small": small, "paper": paper})


def small():
  config = common.run_settings("tfvq.tasks.wavenet:WaveNetTask")
  config.phones = False
  config.data = common.speech_data(source="piano", composers=("bach",), crop_samples=8192)
  config.prior = common.audio_wavenet(num_bands=8, channels=96, num_stacks=2, layers_per_stack=9, hidden_units=32)
  config.train.prior = common.training(steps=2000, batch_size=4, learning_rate=4e-3, optimizer="muon")
  config.samples = ConfigDict({"num": 3, "seconds": 5, "temperature": (0.9,)})
  return config


def paper():
  config = small()
  config.data.crop_samples = 32_000
  config.prior = common.audio_wavenet(channels=256, num_stacks=4, layers_per_stack=10, hidden_units=256)
  config.train.prior = common.training(steps=500_000, batch_size=16, learning_rate=2e-4)
  return config
