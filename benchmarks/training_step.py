"""Compares a training step of the frames autoencoder with the same network in plain PyTorch, channels last.

pip install -r benchmarks/requirements.txt
python -m benchmarks.training_step
"""

import keras
import numpy as np
import tensorflow as tf
import torch

from benchmarks.timing import medians, report
from tfvq.layers import VectorQuantizer
from tfvq.models import VQVAE, ConvolutionalDecoder, FixedVarianceGaussian, image_decoder, image_encoder

SIZE, HIDDEN, STEM, RESIDUAL, DIM, CODES = 84, 64, 32, 32, 16, 512


def tfvq_step(images, precision="float32"):
  """A compiled Keras training step under a dtype policy."""
  keras.config.set_dtype_policy(precision)
  sizes = {"hidden_units": HIDDEN, "stem_units": STEM, "residual_units": RESIDUAL, "embedding_dim": DIM}
  shape = (SIZE, SIZE, 3)
  model = VQVAE(
    image_encoder(shape, **sizes),
    VectorQuantizer(CODES, DIM, revival_threshold=0),
    ConvolutionalDecoder(image_decoder(shape, **sizes), FixedVarianceGaussian()),
  )
  model.compile(keras.optimizers.Adam(1e-3))
  model.optimizer.build(model.trainable_variables)
  batch = tf.constant(images)
  step = tf.function(lambda: model.train_step(batch))
  return step, model.count_params()


class TorchBlock(torch.nn.Module):
  """ReLU, 3x3, ReLU, 1x1, and a skip connection."""

  def __init__(self):
    super().__init__()
    self.conv3x3 = torch.nn.Conv2d(HIDDEN, RESIDUAL, 3, padding=1)
    self.conv1x1 = torch.nn.Conv2d(RESIDUAL, HIDDEN, 1)

  def forward(self, x):
    return x + self.conv1x1(torch.relu(self.conv3x3(torch.relu(x))))


class TorchVQVAE(torch.nn.Module):
  """The same layers, losses and moving averages."""

  def __init__(self):
    super().__init__()
    nn = torch.nn
    self.encoder = nn.Sequential(
      nn.Conv2d(3, STEM, 4, 2, 1), nn.ReLU(), nn.Conv2d(STEM, HIDDEN, 4, 2, 1), TorchBlock(), TorchBlock(), nn.ReLU(),
      nn.Conv2d(HIDDEN, DIM, 1),
    )  # fmt: skip
    self.decoder = nn.Sequential(
      nn.Conv2d(DIM, HIDDEN, 3, 1, 1), TorchBlock(), TorchBlock(), nn.ReLU(),
      nn.ConvTranspose2d(HIDDEN, STEM, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(STEM, 3, 4, 2, 1),
    )  # fmt: skip
    self.register_buffer("codebook", torch.randn(CODES, DIM))
    self.register_buffer("counts", torch.ones(CODES))
    self.register_buffer("sums", self.codebook.clone())

  def forward(self, x):
    z_e = self.encoder(x).permute(0, 2, 3, 1)
    flat = z_e.reshape(-1, DIM)
    with torch.no_grad():
      codes = torch.argmax(flat @ self.codebook.T - 0.5 * (self.codebook**2).sum(-1), dim=-1)
      counts = torch.bincount(codes, minlength=CODES).float()
      sums = torch.zeros_like(self.sums).index_add_(0, codes, flat)
      e = self.codebook[codes].reshape(z_e.shape)
      self.counts.mul_(0.99).add_(counts, alpha=0.01)
      self.sums.mul_(0.99).add_(sums, alpha=0.01)
      self.codebook.copy_(self.sums / self.counts[:, None])
    commitment = ((z_e - e) ** 2).mean()
    z_q = z_e + (e - z_e).detach()
    return self.decoder(z_q.permute(0, 3, 1, 2)), commitment


def torch_step(images):
  """A PyTorch training step."""
  model = TorchVQVAE().to(memory_format=torch.channels_last)
  optimizer = torch.optim.Adam(model.parameters(), 1e-3)
  batch = torch.from_numpy(images).permute(0, 3, 1, 2)

  def step():
    x = batch.float() / 127.5 - 1
    y, commitment = model(x.to(memory_format=torch.channels_last))
    loss = 0.5 * ((y - x) ** 2).mean() + 0.25 * commitment
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()

  return step, sum(parameter.numel() for parameter in model.parameters())


def main():
  for batch_size in (8, 32):
    images = np.random.default_rng(0).integers(0, 256, (batch_size, SIZE, SIZE, 3)).astype(np.uint8)
    (ours, num_ours), (peer, num_peer) = tfvq_step(images), torch_step(images)
    functions = {"PyTorch": peer, "tfvq": ours, "tfvq, bfloat16 products": tfvq_step(images, "mixed_bfloat16")[0]}
    seconds = medians(functions, rounds=8)
    title = f"training step, batch {batch_size}; parameters: PyTorch {num_peer:,}, tfvq {num_ours:,}"
    report(title, seconds, "PyTorch", batch_size, "frames")


if __name__ == "__main__":
  main()
