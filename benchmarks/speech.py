"""Times speech: generation with cached activations compared with naive generation, and training of decoders.

python -m benchmarks.speech
"""

import contextlib
import multiprocessing

import keras
import numpy as np
import tensorflow as tf

from benchmarks.timing import medians, report
from tfvq.configs import common
from tfvq.models import WaveNet, gumbel_noise, noise_shape, sample
from tfvq.ops.matmul import matmul_precision
from tfvq.tasks.corpus_task import build_wavenet
from tfvq.tasks.speech import build_speech_vqvae
from tfvq.training.strategy import make_strategy

CONDITION_DIM = 64
BATCH_SIZE, CROP_SAMPLES = 8, 4096  # of a training step


def decoder_settings(num_bands, channels, layers_per_stack, hidden_units=64):
  return common.audio_wavenet(
    num_bands=num_bands,
    channels=channels,
    num_stacks=2,
    layers_per_stack=layers_per_stack,
    hidden_units=hidden_units,
  )


DECODERS = {
  "plain 20 x 64": decoder_settings(1, 64, 10),
  "4 sub-bands, 16 x 96": decoder_settings(4, 96, 8),
  "4 sub-bands, 16 x 128": decoder_settings(4, 128, 8),
  "8 sub-bands, 16 x 128": decoder_settings(8, 128, 8, hidden_units=32),
  "8 sub-bands, 14 x 96": decoder_settings(8, 96, 7, hidden_units=32),
}


def naive_step(model: WaveNet):
  """Makes a function that computes one step from a whole receptive field."""
  x = tf.zeros([1, model.receptive_field + 1, model.head.num_variables], tf.int32)
  condition = {"local": tf.zeros([1, 1, CONDITION_DIM])}
  noise = gumbel_noise(0, [1, *model.head.noise_shape])
  step = tf.function(lambda: model.head.sample(model.features(x, condition)[:, -1], noise))
  return lambda: step().numpy()


def cached(model: WaveNet, num_steps, jit_compile, batch_size=1):
  noise = gumbel_noise(0, noise_shape(model, batch_size, num_steps))
  condition = {"local": tf.random.stateless_normal([batch_size, num_steps // 16, CONDITION_DIM], [0, 1])}
  draw = tf.function(lambda noise, condition: sample(model, noise, condition), jit_compile=jit_compile)
  return lambda: draw(noise, condition).numpy()


def generation():
  for title, settings in DECODERS.items():
    model = build_wavenet(settings, settings.num_values, settings.num_bands, condition_dim=CONDITION_DIM)
    num_steps = 4096
    seconds = medians(
      {
        "naive": naive_step(model),
        "cached": cached(model, num_steps // 8, False),
        "cached, XLA": cached(model, num_steps, True),
        "cached, XLA, 16 streams": cached(model, num_steps, True, batch_size=16),
      },
      rounds=5,
    )
    per_step = {
      "naive": seconds["naive"],
      "cached": seconds["cached"] / (num_steps // 8),
      "cached, XLA": seconds["cached, XLA"] / num_steps,
      "cached, XLA, 16 streams": seconds["cached, XLA, 16 streams"] / num_steps / 16,
    }
    title = f"generation, {title}, {model.count_params():,} parameters; real time is 16,000 samples/s"
    report(title, per_step, "naive", settings.num_bands, "samples")


def serve_training_steps(connection, title, strategy, jit_compile, bfloat16_products):
  """Runs a training step for each message from a connection, and replies with the loss."""
  strategy = make_strategy(strategy)
  autoencoder = common.speech_autoencoder(encoder="log_mel", encoder_units=128)
  autoencoder.decoder = DECODERS[title]
  with strategy.scope():
    model = build_speech_vqvae(autoencoder, num_speakers=4)
    model.compile(keras.optimizers.Adam(1e-3), jit_compile=jit_compile)
    model.optimizer.build(model.trainable_variables)
  num_samples = CROP_SAMPLES + 2 * model.margin_frames * model.hop_samples
  audio = 0.1 * np.random.default_rng(0).normal(size=(BATCH_SIZE, num_samples)).astype(np.float32)
  examples = tf.data.Dataset.from_tensor_slices({"audio": audio, "speaker": np.zeros(BATCH_SIZE, np.int32)})
  batches = examples.repeat().batch(BATCH_SIZE, drop_remainder=True)
  with matmul_precision(tf.bfloat16 if bfloat16_products else None):
    model.fit(batches, steps_per_epoch=1, verbose=0, shuffle=False)
  iterator = iter(strategy.experimental_distribute_dataset(batches))
  with contextlib.suppress(EOFError):  # the other end was closed
    while True:
      connection.recv()
      connection.send(float(model.train_function(iterator)["loss"]))


def training_step(*arguments):
  """Makes a function that runs a step in its own process, because a process cannot change its number of threads."""
  context = multiprocessing.get_context("spawn")
  here, there = context.Pipe()
  context.Process(target=serve_training_steps, args=(there, *arguments), daemon=True).start()
  there.close()

  def step():
    here.send("step")
    here.recv()

  return step


def training(title):
  functions = {
    "TensorFlow": training_step(title, "default", False, False),
    "XLA": training_step(title, "default", True, False),
    "products in bfloat16": training_step(title, "default", False, True),
    "cores": training_step(title, "cores", False, False),
    "cores, products in bfloat16": training_step(title, "cores", False, True),
  }
  title = f"training step with Adam, {title}, encoder and quantiser included"
  report(title, medians(functions, rounds=5, turn_seconds=3), "TensorFlow", BATCH_SIZE * CROP_SAMPLES, "samples")


if __name__ == "__main__":
  generation()
  for title in DECODERS:
    training(title)
