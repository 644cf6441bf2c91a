"""Photographs: tiles of 128x128x3 -> 32x32 codes of 512 -> PixelCNN prior.

Source: arXiv 1711.00937, section 4.2 (ImageNet at 128x128, figures 2 and 3), with the photographs of Debian's wallpaper
packages, or with your own:

  python train_main.py --config=tfvq/configs/photos.py:small --workdir=runs/photos
  python train_main.py --config=tfvq/configs/photos.py:small --workdir=runs/mine --config.data.folder=$HOME/Pictures

`small` (default) is for two cores; `paper` has the paper's layer sizes. The paper shows reconstructions, and reports
no metrics.
"""

from ml_collections import ConfigDict

from tfvq.configs import common


def get_config(variant=None):
  return common.choose(variant, {"small": small, "paper": paper})


def small():
  config = common.run_settings("tfvq.tasks.images:ImageTask")
  config.data = ConfigDict(
    {
      "source": "photos",
      "image_size": 128,
      "folder": "",  # folder of pictures; empty for the packages below
      "packages": ("lomiri-wallpapers-16.04", "mate-backgrounds"),
      "cache": "~/.cache/tfvq",
      "shorter_side": 1024,
      "validation_percent": 10,  # of the photographs; another tenth is held out
    }
  )
  config.autoencoder = common.autoencoder(
    hidden_units=64, stem_units=32, residual_units=32, num_encoder_blocks=0, embedding_dim=16
  )
  config.autoencoder.quantizer.decay = 0.97
  config.prior = common.pixelcnn(filters=32, num_layers=8, kernel_size=3, hidden_units=128)
  config.train.autoencoder = common.training(steps=4000, batch_size=4, learning_rate=4e-3, optimizer="muon")
  config.train.prior = common.training(steps=2000, batch_size=4, learning_rate=2e-2, optimizer="muon")
  return config


def paper():
  config = small()
  config.data.packages = ("lomiri-wallpapers-16.04", "mate-backgrounds", "plasma-workspace-wallpapers")
  config.autoencoder = common.autoencoder()
  config.prior = common.pixelcnn(num_layers=20)
  config.train.autoencoder = common.training(
    steps=250_000, batch_size=128, learning_rate=2e-4, schedule="constant", beta_2=0.999
  )
  config.train.prior = common.training(steps=250_000, batch_size=128, learning_rate=4e-4)
  return config
