"""ImageNet at 128x128x3 -> 32x32 codes of 512 (42.7 times fewer bits) -> class-conditional PixelCNN prior.

Source: arXiv 1711.00937, section 4.2, figures 2 and 3. The data set is TensorFlow Datasets' `imagenet2012`. Download
its archives from image-net.org, and put them where TensorFlow Datasets says.

  python train_main.py --config=tfvq/configs/imagenet.py:paper --workdir=runs/imagenet --config.data.data_dir=DIR

The paper shows reconstructions and samples, and reports no metrics. `small` (default) is the same with small
layers.
"""

from ml_collections import ConfigDict

from tfvq.configs import common


def get_config(variant=None):
  return common.choose(variant, {"small": small, "paper": paper})


def small():
  config = paper()
  config.autoencoder = common.autoencoder(
    hidden_units=64, stem_units=32, residual_units=32, num_encoder_blocks=0, embedding_dim=16
  )
  config.autoencoder.quantizer.decay = 0.97
  config.prior = common.pixelcnn(
    filters=32, num_layers=8, kernel_size=3, hidden_units=128, dropout=0.0, class_conditional=True
  )
  config.train.autoencoder = common.training(steps=10_000, batch_size=8, learning_rate=4e-3, optimizer="muon")
  config.train.prior = common.training(steps=10_000, batch_size=8, learning_rate=2e-2, optimizer="muon")
  return config


def paper():
  config = common.run_settings("tfvq.tasks.images:ImageTask")
  config.data = ConfigDict(
    {
      "source": "tfds",
      "name": "imagenet2012",
      "held_out": "validation",  # the labels of the split "test" are not public
      "validation_percent": 1,  # of the training images
      "image_size": 128,
      "data_dir": "",
    }
  )
  config.autoencoder = common.autoencoder()
  config.prior = common.pixelcnn(num_layers=20, filters=256, class_conditional=True)
  config.train.autoencoder = common.training(
    steps=250_000, batch_size=128, learning_rate=2e-4, schedule="constant", beta_2=0.999
  )
  config.train.prior = common.training(steps=500_000, batch_size=128, learning_rate=4e-4)
  return config
