"""CIFAR-10 likelihoods of a VQ-VAE with 8x8x10 latents, and of a VAE and VIMCO with the same architecture.

Source: arXiv 1711.00937, section 4.1. The paper's bounds on the test set, in bits/dim, one command per row:

  python train_main.py --config=tfvq/configs/cifar10.py:paper --workdir=runs/cifar10_vq
      4.67  VQ-VAE, `autoencoder_bits_per_dim` with a uniform prior over the 640 codes
  python train_main.py --config=tfvq/configs/cifar10.py:paper --workdir=runs/cifar10_vae \
      --config.autoencoder.bottleneck=gaussian
      4.51  VAE
  python train_main.py --config=tfvq/configs/cifar10.py:paper --workdir=runs/cifar10_vimco \
      --config.autoencoder.bottleneck=vimco
      5.14  VIMCO, 50 samples

The first command also trains a PixelCNN prior over the codes. `small` (default) is the same with small layers.
"""

from tfvq.configs import common


def get_config(variant=None):
  return common.choose(variant, {"small": small, "paper": paper})


def small():
  config = paper()
  config.autoencoder = common.autoencoder(
    distribution="logistic",
    hidden_units=64,
    stem_units=64,
    residual_units=32,
    embedding_dim=16,
    latents_per_position=10,
    num_vimco_samples=10,
  )
  config.prior = common.pixelcnn(filters=32, num_layers=6, kernel_size=3, hidden_units=64, dropout=0.0)
  config.train.autoencoder = common.training(steps=5_000, batch_size=32, learning_rate=1e-3)
  config.train.prior = common.training(steps=2_000, batch_size=16, learning_rate=2e-2, optimizer="muon")
  return config


def paper():
  config = common.run_settings("tfvq.tasks.images:ImageTask")
  config.data = common.cifar10_data()
  config.autoencoder = common.autoencoder(distribution="logistic", latents_per_position=10)
  config.prior = common.pixelcnn(num_layers=10, kernel_size=3)
  config.train.autoencoder = common.training(
    steps=250_000, batch_size=128, learning_rate=2e-4, schedule="constant", beta_2=0.999
  )
  config.train.prior = common.training(steps=100_000, batch_size=128, learning_rate=4e-4)
  return config
