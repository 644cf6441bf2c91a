"""Three global latents: the 21x21 codes of a frame -> three codes of 512, 27 bits an image -> PixelCNN decoder.

Source: arXiv 1711.00937, section 4.2, with the codes of a finished run of `frames`.

  python train_main.py --config=tfvq/configs/frames.py:small --workdir=runs/frames
  python train_main.py --config=tfvq/configs/global_latents.py:small --workdir=runs/global_latents

`small` (default) is for two cores, `paper` needs an accelerator. The paper shows reconstructions, and reports no
metrics. The first stage's run is --config.data.workdir.
"""

from ml_collections import ConfigDict

from tfvq.configs import common


def get_config(variant=None):
  return common.choose(variant, {"small": small, "paper": paper})


def small():
  config = common.run_settings("tfvq.tasks.global_latents:GlobalLatentsTask")
  config.data = ConfigDict({"workdir": "runs/frames"})
  config.autoencoder = ConfigDict(
    {
      "hidden_units": 64,
      "embedding_dim": 48,  # of all latents together
      "condition_dim": 32,  # channels of the map that conditions the decoder
      "quantizer": common.quantizer(kind="product", num_groups=3, decay=0.97),
    }
  )
  # Of the decoder, and of the prior that it is compared with.
  config.prior = common.pixelcnn(filters=32, num_layers=8, kernel_size=3, hidden_units=128, dropout=0.0)
  config.train.autoencoder = common.training(steps=4000, batch_size=8, learning_rate=1e-2, optimizer="muon")
  config.train.prior = common.training(steps=4000, batch_size=8, learning_rate=1e-2, optimizer="muon")
  config.samples.update({"num": 8, "num_draws": 3})
  return config


def paper():
  config = small()
  config.autoencoder.update({"hidden_units": 256, "embedding_dim": 192, "condition_dim": 128})
  config.prior = common.pixelcnn()
  config.train.autoencoder = common.training(
    steps=250_000, batch_size=128, learning_rate=2e-4, schedule="constant", beta_2=0.999
  )
  config.train.prior = common.training(
    steps=250_000, batch_size=128, learning_rate=2e-4, schedule="constant", beta_2=0.999
  )
  return config
