"""Compares all kinds of quantisers in the same small autoencoder, with equal bits and steps, and several seeds.

--data is an .npz file with the arrays `train` and `held_out`: images, [N, H, W, channels], or spectrograms, [N, frames,
bands], with H, W and frames multiples of 4. Encoder and decoder have two convolutions each. The error is the mean
squared error on `held_out`, relative to that of predicting the mean of `train`. Every kind is trained with every
learning rate. The table shows the learning rate with the smallest error on the last tenth of `train`, which is not
trained on. Runs that are in the file --results already are not repeated: give the same command again to continue.

python -m benchmarks.quantisers --data=frames.npz --results=runs/quantisers.json
"""

import argparse
import json
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf

from benchmarks.timing import medians
from tfvq.configs.common import quantizer as quantizer_settings
from tfvq.files import write_json
from tfvq.layers import build_quantizer

DIM, HIDDEN, BATCH_SIZE = 16, 64, 32
BITS = 8  # per vector, of every kind
KINDS = {
  "vector": {"num_embeddings": 256},
  "vector, cosine": {"kind": "vector", "num_embeddings": 256, "metric": "cosine"},
  "vector, rotation": {"kind": "vector", "num_embeddings": 256, "gradient": "rotation"},
  "residual": {"kind": "residual", "num_embeddings": 16, "num_levels": 2, "level_dropout": 0.0},
  "product": {"kind": "product", "num_embeddings": 16, "num_groups": 2},
  "finite scalar": {"kind": "finite_scalar", "levels": (4, 4, 4, 4)},
  "lookup-free": {"kind": "lookup_free", "num_bits": 8},
  "soft to hard": {"kind": "soft_to_hard", "num_embeddings": 256},
}


def make_quantizer(name, num_steps, seed):
  """Makes the quantiser of a row of the table; the soft-to-hard one reaches its final hardness at the last step."""
  quantizer = build_quantizer(quantizer_settings(annealing_steps=num_steps, **KINDS[name]), DIM, seed)
  assert quantizer.bits == BITS, name
  return quantizer


def make_model(name, data_shape, num_steps, seed):
  """Makes an autoencoder whose latents have a quarter of the data's height and width, or of its frames."""
  keras.utils.set_random_seed(seed)
  is_image = len(data_shape) == 3
  convolution = keras.layers.Conv2D if is_image else keras.layers.Conv1D
  transposed = keras.layers.Conv2DTranspose if is_image else keras.layers.Conv1DTranspose
  return keras.Sequential(
    [
      keras.Input(data_shape),
      convolution(HIDDEN, 4, 4, activation="relu"),
      convolution(DIM, 3, padding="same"),
      make_quantizer(name, num_steps, seed),
      convolution(HIDDEN, 3, padding="same", activation="relu"),
      transposed(data_shape[-1], 4, 4),
    ]
  )


def train(name, splits, num_steps, learning_rate, seed):
  """Trains one autoencoder; returns its metrics."""
  model = make_model(name, splits["train"].shape[1:], num_steps, seed)
  schedule = keras.optimizers.schedules.CosineDecay(0.0, num_steps, warmup_target=learning_rate, warmup_steps=50)
  model.compile(
    keras.optimizers.Adam(schedule, beta_2=0.95),
    "mse",
    metrics=[keras.metrics.MeanSquaredError("error")],
    jit_compile=False,
  )
  encoder, quantizer = keras.Sequential(model.layers[:2]), model.layers[2]
  quantizer.adapt(encoder(splits["train"][:256]))
  batches = tf.data.Dataset.from_tensor_slices(splits["train"]).shuffle(len(splits["train"]), seed=seed).repeat()
  batches = batches.batch(BATCH_SIZE).map(lambda x: (x, x)).prefetch(2)
  model.fit(batches, steps_per_epoch=1, verbose=0)  # not timed, because it traces the step
  began_at = time.perf_counter()
  model.fit(batches, steps_per_epoch=num_steps - 1, verbose=0)
  seconds = time.perf_counter() - began_at
  quantizer.usage.reset_state()
  metrics = {split: model.evaluate(splits[split], splits[split], verbose=0, return_dict=True) for split in splits}
  return {
    "validation_error": metrics["validation"]["error"],
    "held_out_error": metrics["held_out"]["error"],
    "codebook_usage": metrics["held_out"]["codebook_usage"],
    "perplexity": metrics["held_out"]["perplexity"],
    "seconds_per_step": seconds / (num_steps - 1),
  }


def load(path):
  """Loads the splits of an .npz file, normalised to mean 0 and variance 1 of the training set."""
  with np.load(path) as arrays:
    splits = {split: arrays[split].astype(np.float32) for split in ("train", "held_out")}
  mean, deviation = splits["train"].mean(), splits["train"].std()
  splits = {split: (values - mean) / deviation for split, values in splits.items()}
  num_validation = len(splits["train"]) // 10
  return {
    "train": splits["train"][:-num_validation],
    "validation": splits["train"][-num_validation:],
    "held_out": splits["held_out"],
  }


def step_times(data_shape):
  """Median time of each quantiser's training step alone, in seconds, for the number of vectors in a batch."""
  num_vectors = BATCH_SIZE * int(np.prod([size // 4 for size in data_shape[:-1]]))
  z_e = tf.constant(np.random.default_rng(0).normal(size=(num_vectors, DIM)).astype(np.float32))

  def make_step(name):
    quantizer = make_quantizer(name, 1000, seed=0)

    @tf.function
    def step():
      with tf.GradientTape() as tape:
        tape.watch(z_e)
        loss = tf.reduce_sum(quantizer(z_e, training=True)) + sum(quantizer.losses)
      return tape.gradient(loss, [z_e, *quantizer.trainable_weights])

    return step

  return medians({name: make_step(name) for name in KINDS})


def report(results, seconds):
  """Prints a row for each kind, with its best learning rate."""
  columns = {"rate": 8, "error": 9, "+-": 8, "usage": 7, "perplexity": 11, "ms/step": 9, "quantiser x": 12}
  print(f"{'':18s}" + "".join(f"{column:>{width}s}" for column, width in columns.items()))
  for name in KINDS:
    by_rate = {}
    for run in results:
      if run["name"] == name:
        by_rate.setdefault(run["learning_rate"], []).append(run)
    rate, runs = min(by_rate.items(), key=lambda item: np.mean([run["validation_error"] for run in item[1]]))
    mean = lambda metric, runs=runs: np.mean([run[metric] for run in runs])
    spread = np.std([run["held_out_error"] for run in runs], ddof=1) if len(runs) > 1 else 0.0
    print(
      f"{name:18s}{rate:8.4f}{mean('held_out_error'):9.4f}{spread:8.4f}{mean('codebook_usage'):7.2f}"
      f"{mean('perplexity'):11.1f}{1000 * mean('seconds_per_step'):9.1f}{seconds[name] / seconds['vector']:12.2f}"
    )


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", type=pathlib.Path, required=True)
  parser.add_argument("--results", type=pathlib.Path, required=True, help="JSON file of results, created or extended")
  parser.add_argument("--steps", type=int, default=2000)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--learning_rates", type=float, nargs="+", default=[1e-3, 3e-3])
  arguments = parser.parse_args()
  splits = load(arguments.data)
  results = json.loads(arguments.results.read_text()) if arguments.results.exists() else []
  chosen = []
  for seed in range(arguments.seeds):
    for learning_rate in arguments.learning_rates:
      for name, settings in KINDS.items():
        key = {"name": name, "settings": settings, "data": str(arguments.data), "steps": arguments.steps}
        key = json.loads(json.dumps({**key, "learning_rate": learning_rate, "seed": seed}))
        run = next((run for run in results if key.items() <= run.items()), None)
        if run is None:
          run = {**key, **train(name, splits, arguments.steps, learning_rate, seed)}
          results.append(run)
          write_json(arguments.results, results)
          print(f"{name}, rate {learning_rate}, seed {seed}: error {run['held_out_error']:.4f}", flush=True)
        chosen.append(run)
  report(chosen, step_times(splits["train"].shape[1:]))


if __name__ == "__main__":
  main()
