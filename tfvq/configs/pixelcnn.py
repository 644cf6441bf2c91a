"""A class-conditional PixelCNN of 8-bit images.

Source: arXiv 1606.05328 (gated PixelCNN; 3.03 bits/dim on CIFAR-10 without classes), shown in the VQ-VAE talk as an
image model.

  python train_main.py --config=tfvq/configs/pixelcnn.py:small --workdir=runs/pixelcnn
  python train_main.py --config=tfvq/configs/pixelcnn.py:paper --workdir=runs/pixelcnn_cifar10

`small` (default) models 32x32 frames of six ViZDoom scenarios, where the scenario is the class; `paper` models
CIFAR-10.
"""

from ml_collections import ConfigDict

from tfvq.configs import common


def get_config(variant=None):
  return common.choose(variant, {"small": small, "paper": paper})


def small():
  config = common.run_settings("tfvq.tasks.images:ImageTask")
  config.data = ConfigDict(
    {
      "source": "vizdoom_scenarios",
      "image_size": 32,
      "scenarios": (
        "my_way_home",
        "health_gathering",
        "health_gathering_supreme",
        "deathmatch",
        "deadly_corridor",
        "predict_position",
      ),
      "num_train_episodes": 10,
      "num_validation_episodes": 2,
      "num_held_out_episodes": 2,
      "frames_per_episode": 100,
      "tics_per_frame": 14,
    }
  )
  config.prior = common.pixelcnn(
    filters=32, num_layers=8, kernel_size=3, hidden_units=64, dropout=0.0, class_conditional=True
  )
  config.train.prior = common.training(steps=2000, batch_size=8, learning_rate=1e-2, optimizer="muon")
  config.samples.num = 24
  return config


def paper():
  config = common.run_settings("tfvq.tasks.images:ImageTask")
  config.data = common.cifar10_data()
  config.prior = common.pixelcnn(num_layers=15, kernel_size=5, class_conditional=True)
  config.train.prior = common.training(steps=200_000, batch_size=128, learning_rate=4e-4)
  return config
