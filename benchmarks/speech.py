"""Speech: generation with cached activations beside naive generation, and training of the decoders.

python -m benchmarks.speech
"""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from benchmarks.timing import medians, report
from tfvq.configs import common
from tfvq.models import WaveNet, gumbel_noise, sample_sequence, sequence_noise_shape
from tfvq.ops.product import product_precision
from tfvq.tasks.corpus_task import build_wavenet
from tfvq.tasks.speech import build_speech_vqvae

CONDITION_DIM = 64


def decoder_settings(num_bands, channels, layers_per_stack, hidden_units=64):
  return common.wavenet(
    num_bands=num_bands,
    channels=channels,
    num_stacks=2,
    layers_per_stack=layers_per_stack,
    hidden_units=hidden_units,
  )


DECODERS = {
  "plain 64 x 20": decoder_settings(1, 64, 10),
  "4 sub-bands, 96 x 16": decoder_settings(4, 96, 8),
  "4 sub-bands, 128 x 16": decoder_settings(4, 128, 8),
  "8 sub-bands, 128 x 16": decoder_settings(8, 128, 8, hidden_units=32),
  "8 sub-bands, 96 x 14": decoder_settings(8, 96, 7, hidden_units=32),
}


def naive_step(model: WaveNet):
  """One step by the whole network over one receptive field."""
  x = tf.zeros([model.receptive_field + 1, model.head.num_variables], tf.int32)
  condition = {"local": tf.zeros([1, 1, CONDITION_DIM])}
  noise = gumbel_noise(0, [1, *model.head.noise_shape])
  step = tf.function(lambda: model.head.sample(model.features(x, 1, condition)[-1:], noise))
  return lambda: step().numpy()


def cached(model: WaveNet, num_steps, jit_compile, batch_size=1):
  noise = gumbel_noise(0, sequence_noise_shape(model, num_steps, batch_size))
  condition = {"local": tf.random.stateless_normal([batch_size, num_steps // 16, CONDITION_DIM], [0, 1])}
  sample = tf.function(lambda noise, condition: sample_sequence(model, noise, condition), jit_compile=jit_compile)
  return lambda: sample(noise, condition).numpy()


def generation():
  for title, settings in DECODERS.items():
    model = build_wavenet(settings, condition_dim=CONDITION_DIM)
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


def train_step(model, batch, factors):
  with product_precision(factors):
    model.train_on_batch(batch)  # where it is traced
  return lambda: model.train_on_batch(batch)


def training():
  crop_samples, batch_size = 4096, 8
  for title, settings in DECODERS.items():
    functions = {}
    for name, jit_compile, factors in (
      ("TensorFlow", False, None),
      ("XLA", True, None),
      ("products in bfloat16", False, tf.bfloat16),
    ):
      autoencoder = common.speech_autoencoder(encoder="log_mel", encoder_units=128)
      autoencoder.decoder = settings
      model = build_speech_vqvae(autoencoder, num_speakers=4)
      model.compile(keras.optimizers.Adam(1e-3), jit_compile=jit_compile)
      context = 2 * model.margin_frames * model.hop_samples
      audio = 0.1 * np.random.default_rng(0).normal(size=(batch_size, crop_samples + context))
      batch = {"audio": tf.constant(audio, tf.float32), "speaker": tf.zeros([batch_size], tf.int32)}
      functions[name] = train_step(model, batch, factors)
    title = f"training step with Adam, {title}, encoder and quantiser included"
    report(title, medians(functions, rounds=5, turn_seconds=3), "TensorFlow", batch_size * crop_samples, "samples")


if __name__ == "__main__":
  generation()
  training()
