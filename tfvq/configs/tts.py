"""A WaveNet of speech, conditioned on phones and their durations (text-to-speech).

Source: arXiv 1609.03499, section 3.2 (text-to-speech), shown in the VQ-VAE talk. Here the data are recordings of one
Russian speaker with phone labels (Debian's festvox-ru). The model in the paper is conditioned on the fundamental
frequency too.

  python train_main.py --config=tfvq/configs/tts.py:small --workdir=runs/tts

`small` (default) has eight sub-bands and is for two cores; `paper` has no sub-bands and needs an accelerator. In the
paper, the mean opinion score of WaveNet in English is 4.21 of 5.
"""

from ml_collections import ConfigDict

from tfvq.configs import common


def get_config(variant=None):
  return common.choose(variant, {"small": small, "paper": paper})


def small():
  config = common.run_settings("tfvq.tasks.wavenet:WaveNetTask")
  config.phones = True  # the phones condition the network
  config.data = common.speech_data(source="festvox_ru", crop_samples=4800)
  config.prior = common.audio_wavenet(num_bands=8, channels=96, num_stacks=2, layers_per_stack=7, hidden_units=32)
  config.train.prior = common.training(steps=3000, batch_size=4, learning_rate=4e-3, optimizer="muon")
  config.samples = ConfigDict({"num": 3, "seconds": 3, "temperature": (0.8, 0.8, 0.9, 0.9, 1.0, 1.0, 1.0, 1.0)})
  return config


def paper():
  config = small()
  config.data.crop_samples = 16_000
  config.prior = common.audio_wavenet(channels=256, num_stacks=3, layers_per_stack=10, hidden_units=256)
  config.train.prior = common.training(steps=500_000, batch_size=32, learning_rate=2e-4)
  config.samples.temperature = (1.0,)
  return config
