"""First-person frames: 84x84x3 -> 21x21 codes of 512 -> PixelCNN prior.

Source: arXiv 1711.00937, section 4.2 (DeepMind Lab frames, figure 4), with ViZDoom's `my_way_home` in place of
DeepMind Lab.

  python train_main.py --config=tfvq/configs/frames.py:small --workdir=runs/frames

`small` (default) is for two cores; docs/RESULTS.md has its results. `paper` has the paper's layer sizes and needs an
accelerator. The paper shows samples, and reports no metrics.
"""

from ml_collections import ConfigDict

from tfvq.configs import common


def get_config(variant=None):
  return common.choose(variant, {"small": small, "paper": paper})


def small():
  config = common.run_settings("tfvq.tasks.images:ImageTask")
  config.data = ConfigDict(
    {
      "source": "vizdoom",
      "image_size": 84,
      "scenario": "my_way_home",
      "unseen_scenario": "deathmatch",
      "num_train_episodes": 60,
      "num_validation_episodes": 10,  # with as many frames, as far apart, as the held-out ones; 0 for none
      "num_held_out_episodes": 10,
      "train_frames_per_episode": 200,
      "train_tics_per_frame": 7,
      "held_out_frames_per_episode": 60,
      "held_out_tics_per_frame": 35,
    }
  )
  config.autoencoder = common.autoencoder(
    hidden_units=64, stem_units=32, residual_units=32, num_encoder_blocks=0, embedding_dim=16
  )
  config.autoencoder.quantizer.decay = 0.97
  config.prior = common.pixelcnn(filters=32, num_layers=8, kernel_size=3, hidden_units=128, dropout=0.0)
  config.train.autoencoder = common.training(steps=5000, batch_size=8, learning_rate=4e-3, optimizer="muon")
  config.train.prior = common.training(steps=2200, batch_size=8, learning_rate=2e-2, optimizer="muon")
  return config


def paper():
  config = small()
  config.data.num_train_episodes = 2000
  config.data.num_validation_episodes = 100
  config.data.num_held_out_episodes = 100
  config.autoencoder = common.autoencoder()
  config.prior = common.pixelcnn()
  config.train.autoencoder = common.training(
    steps=250_000, batch_size=128, learning_rate=2e-4, schedule="constant", beta_2=0.999
  )
  config.train.prior = common.training(steps=250_000, batch_size=128, learning_rate=4e-4)
  return config
