"""Trains the models of benchmarks/quantisers.py: a small autoencoder with any quantiser, and a prior over its codes."""

import keras
import numpy as np
import tensorflow as tf

from tfvq.configs.common import quantizer as quantizer_settings
from tfvq.evaluation.metrics import code_statistics
from tfvq.layers import CategoricalHead, build_quantizer
from tfvq.models import PixelCNN, WaveNet

DIM, HIDDEN, BATCH_SIZE, STRIDE = 16, 64, 32, 4
NUM_CODES = 256  # of every quantiser: 8 bits
PRIOR_RATE = 4e-3


def make_quantizer(settings, num_steps, seed):
  """Makes the quantiser of a row of the table."""
  settings = dict(settings)
  annealing_steps = max(1, round(settings.pop("annealing", 1.0) * num_steps))
  quantizer = build_quantizer(quantizer_settings(annealing_steps=annealing_steps, **settings), DIM, seed)
  assert 2**quantizer.bits == NUM_CODES, settings
  return quantizer


def make_model(settings, data_shape, num_steps, seed):
  """Makes an autoencoder whose latents have a quarter of the data's height and width, or of its frames."""
  keras.utils.set_random_seed(seed)
  is_image = len(data_shape) == 3
  convolution = keras.layers.Conv2D if is_image else keras.layers.Conv1D
  transposed = keras.layers.Conv2DTranspose if is_image else keras.layers.Conv1DTranspose
  return keras.Sequential(
    [
      keras.Input(data_shape),
      convolution(HIDDEN, STRIDE, STRIDE, activation="relu"),
      convolution(DIM, 3, padding="same"),
      *([make_quantizer(settings, num_steps, seed)] if settings else []),
      convolution(HIDDEN, 3, padding="same", activation="relu"),
      transposed(data_shape[-1], STRIDE, STRIDE),
    ]
  )


def optimizer(rate, num_steps):
  schedule = keras.optimizers.schedules.CosineDecay(0.0, num_steps, warmup_target=rate, warmup_steps=num_steps // 20)
  return keras.optimizers.Adam(schedule, beta_2=0.95)


def batches(examples, seed):
  """Endless shuffled batches."""
  return tf.data.Dataset.from_tensor_slices(examples).shuffle(len(examples), seed=seed).repeat().batch(BATCH_SIZE)


def train(settings, splits, num_steps, rate, seed):
  """Trains an autoencoder; returns its metrics, and the codes of each split, uint8 [N, positions...]."""
  model = make_model(settings, splits["train"].shape[1:], num_steps, seed)
  encoder = keras.Sequential(model.layers[:2])
  if settings:
    model.layers[2].adapt(encoder(splits["train"][:256]))
  model.compile(optimizer(rate, num_steps), "mse", jit_compile=False)
  model.fit(batches(splits["train"], seed).map(lambda x: (x, x)).prefetch(2), steps_per_epoch=num_steps, verbose=0)
  errors = {f"{split}_error": relative_error(model, splits[split]) for split in ("validation", "held_out")}
  if not settings:
    return errors, {}
  codes = {split: joint_codes(model.layers[2], outputs(encoder, splits[split])) for split in ("train", "held_out")}
  statistics = code_statistics(codes["held_out"], NUM_CODES)
  return {**errors, "use": statistics["codes_used_fraction"], "perplexity": statistics["perplexity"]}, codes


def outputs(model, examples):
  return np.concatenate([model(examples[begin : begin + 256]) for begin in range(0, len(examples), 256)])


def relative_error(model, examples):
  """The mean squared error, relative to that of predicting the mean of the training set, which is 0."""
  return float(np.mean((outputs(model, examples) - examples) ** 2) / np.mean(examples**2))


def joint_codes(quantizer, z_e):
  """Combines the codes of each vector to one in 0..255, z_e [N, ..., D] -> uint8 [N, ...]."""
  codes = quantizer.encode(z_e).numpy()
  if quantizer.code_shape:
    sizes = np.broadcast_to(quantizer.num_values, quantizer.code_shape)
    codes = np.ravel_multi_index(np.moveaxis(codes, -1, 0), sizes)
  return codes.astype(np.uint8)


def train_prior(train_codes, held_out_codes, num_steps, seed):
  """Trains a PixelCNN on grids of codes, or a WaveNet on sequences; returns its bits per vector."""
  keras.utils.set_random_seed(seed)
  if train_codes.ndim == 3:
    prior = PixelCNN(NUM_CODES, train_codes.shape[1:], filters=16, num_layers=3, hidden_units=64)
  else:
    head = CategoricalHead(NUM_CODES, hidden_units=64)
    prior = WaveNet(head, channels=32, dilation_rates=(1, 2, 4, 8, 16), ordinal=False)
    train_codes, held_out_codes = train_codes[..., np.newaxis], held_out_codes[..., np.newaxis]
  prior.compile(optimizer(PRIOR_RATE, num_steps), jit_compile=False)
  codes = batches(train_codes.astype(np.int32), seed).map(lambda x: (x,)).prefetch(2)
  prior.fit(codes, steps_per_epoch=num_steps, verbose=0)
  return {"bits": prior.evaluate(held_out_codes.astype(np.int32), verbose=0, return_dict=True)["bits_per_value"]}
