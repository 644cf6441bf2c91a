"""Compares all kinds of quantisers in the same small autoencoder, with equal bits and steps, and several seeds.

Encoder and decoder have two convolutions each; between them are 8 bits for each position of small images or of log-mel
spectrograms. The error is the mean squared error, relative to that of predicting the mean of the training set. A prior
of fixed size is trained on the codes. Every kind is trained with all learning rates and the first seed, and with the
other seeds at the best learning rate. Then its settings are changed, one at a time, with the first seed. If a change
lowers the error by more than `TUNED_GAIN`, the best change is trained with all seeds and has its own row. The learning
rates and the changes are chosen on the validation split.

Finished training runs are not repeated: give the same command again to continue. `--times` measures the speed; nothing
else should run then.

  python -m benchmarks.quantisers --workdir=runs/quantisers
  python -m benchmarks.quantisers --workdir=runs/quantisers --times
"""

import argparse
import json
import pathlib

import numpy as np
import tensorflow as tf

from benchmarks import quantiser_data
from benchmarks.quantiser_training import (
  BATCH_SIZE,
  DIM,
  NUM_CODES,
  STRIDE,
  make_model,
  make_quantizer,
  optimizer,
  train,
  train_prior,
)
from benchmarks.timing import medians
from tfvq.files import atomic_write, write_json

TUNED_GAIN = 0.03
VECTOR = {"kind": "vector", "num_embeddings": NUM_CODES}
KINDS = {
  "none": None,
  "vector": VECTOR,
  "vector, cosine": {**VECTOR, "metric": "cosine"},
  "vector, rotation": {**VECTOR, "gradient": "rotation"},
  "residual": {"kind": "residual", "num_embeddings": 16, "num_levels": 2, "level_dropout": 0.0},
  "product": {"kind": "product", "num_embeddings": 16, "num_groups": 2},
  "finite scalar": {"kind": "finite_scalar", "levels": (4, 4, 4, 4)},
  "lookup-free": {"kind": "lookup_free", "num_bits": 8},
  "soft to hard": {"kind": "soft_to_hard", "num_embeddings": NUM_CODES, "annealing": 1.0},  # share of the steps
}
CHANGES = {
  "vector": [
    {"commitment_cost": 0.05},
    {"commitment_cost": 1.0},
    {"decay": 0.9},
    {"decay": 0.999},
    {"codebook_update": "loss"},
    {"revival_threshold": 0.0},
    {"revival_threshold": 0.3},
  ],
  "vector, cosine": [{"commitment_cost": 0.05}, {"commitment_cost": 1.0}],
  "vector, rotation": [{"commitment_cost": 0.05}, {"commitment_cost": 1.0}],
  "residual": [
    {"commitment_cost": 1.0},
    {"codebook_update": "loss"},
    {"num_embeddings": 4, "num_levels": 4},
    {"num_embeddings": 2, "num_levels": 8},
  ],
  "product": [
    {"commitment_cost": 1.0},
    {"codebook_update": "loss"},
    {"num_embeddings": 4, "num_groups": 4},
    {"num_embeddings": 2, "num_groups": 8},
  ],
  "finite scalar": [{"levels": (16, 16)}, {"levels": (8, 8, 4)}, {"levels": (2,) * 8}],
  "lookup-free": [
    {"entropy_weight": 0.0},
    {"entropy_weight": 0.01},
    {"entropy_weight": 1.0},
    {"commitment_cost": 0.0},
    {"commitment_cost": 1.0},
  ],
  "soft to hard": [
    {"initial_hardness": 0.1},
    {"initial_hardness": 10.0},
    {"final_hardness": 10.0},
    {"final_hardness": 100.0},
    {"annealing": 0.5},
  ],
}


class Runs:
  """The training runs on a data set. Their metrics are stored in a JSON file, next to the codes of the autoencoders.

  Args:
    folder: Folder of the files.
    data: Name of the data set.
    load: Function that returns the splits of the data set.
    steps: Training steps of an autoencoder.
    prior_steps: Training steps of a prior.
  """

  def __init__(self, folder, data, load, steps, prior_steps):
    self.data, self.steps, self.prior_steps = data, steps, prior_steps
    self._folder, self._path = folder, folder / f"{data}.json"
    self._load, self._splits = load, None
    self._runs = json.loads(self._path.read_text()) if self._path.exists() else []

  @property
  def splits(self):
    self._splits = self._splits or self._load()
    return self._splits

  def autoencoder(self, settings, rate, seed):
    """Metrics of an autoencoder, and "codes", the name of the file of its codes."""

    def make():
      figures, codes = train(settings, self.splits, self.steps, rate, seed)
      if codes:
        path = self._folder / f"{self.data}-{len(self._runs)}.npz"
        with atomic_write(path) as temporary:
          np.savez_compressed(temporary, **codes)
        figures["codes"] = path.name
      return figures

    return self._run(make, {"settings": settings, "steps": self.steps, "rate": rate, "seed": seed})

  def prior(self, settings, rate, seed):
    """Metrics of a prior over the codes of an autoencoder."""

    def make():
      with np.load(self._folder / self.autoencoder(settings, rate, seed)["codes"]) as codes:
        return train_prior(codes["train"], codes["held_out"], self.prior_steps, seed)

    key = {"settings": settings, "steps": self.steps, "rate": rate, "seed": seed, "prior_steps": self.prior_steps}
    return self._run(make, key)

  def _run(self, make, key):
    key = json.loads(json.dumps(key))
    run = next((run for run in self._runs if run["key"] == key), None)
    if run is None:
      run = {"key": key, **make()}
      self._runs.append(run)
      write_json(self._path, self._runs)
      print(self.data, *(f"{name}={value}" for name, value in {**key, **run}.items() if name != "key"), flush=True)
    return run


def measure(runs, kinds, rates, num_seeds, with_changes):
  """Does all training runs on a data set that are not done yet.

  Returns:
    The rows of the table, {name: (learning rate, metrics for each seed)}, and the first seed's metrics for each change
    of a setting, {name: [(change, metrics)]}.
  """
  rows, changed = {}, {}

  def row(settings, rate):
    figures = [runs.autoencoder(settings, rate, seed) for seed in range(num_seeds)]
    bits = [runs.prior(settings, rate, seed) if settings else {} for seed in range(num_seeds)]
    return rate, [{**one, **other} for one, other in zip(figures, bits, strict=True)]

  for name, settings in kinds.items():
    by_rate = {rate: runs.autoencoder(settings, rate, 0)["validation_error"] for rate in rates}
    rows[name] = row(settings, min(by_rate, key=by_rate.get))
  for name, changes in CHANGES.items() if with_changes else ():
    rate, (default, *_) = rows[name]
    changed[name] = [(change, runs.autoencoder({**kinds[name], **change}, rate, 0)) for change in changes]
    best, figures = min(changed[name], key=lambda pair: pair[1]["validation_error"])
    if figures["validation_error"] < (1 - TUNED_GAIN) * default["validation_error"]:
      rows[f"{name}: {in_words(best)}"] = row({**kinds[name], **best}, rate)
  return rows, changed


def in_words(change):
  return ", ".join(f"{name}={value}" for name, value in change.items())


def report(data, rows, changed):
  """Prints the tables of a data set."""
  print(f"\n| {data} | learning rate | error | codes used | perplexity | prior, bits |\n|---|---|---|---|---|---|")
  for name, (rate, figures) in rows.items():
    cells = [spread([run.get(figure) for run in figures], digits) for figure, digits in COLUMNS.items()]
    print(f"| {name} | {rate:g} | {' | '.join(cells)} |")
  if changed:
    print(f"\n| {data}, first seed | setting | error | change |\n|---|---|---|---|")
  for name, made in changed.items():
    default = rows[name][1][0]["held_out_error"]
    for change, figures in made:
      error = figures["held_out_error"]
      print(f"| {name} | {in_words(change)} | {error:.4f} | {100 * (error / default - 1):+.0f} % |")


COLUMNS = {"held_out_error": 4, "use": 2, "perplexity": 0, "bits": 2}  # with the number of digits


def spread(values, digits):
  """Mean and standard deviation as text; empty if there are no values."""
  if values[0] is None:
    return ""
  deviation = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
  return f"{np.mean(values):.{digits}f}{deviation}"


def report_times(data_shape, kinds):
  """Prints the time of a training step, of the quantiser and of the whole model, and its ratio to that of `vector`."""
  num_vectors = BATCH_SIZE * int(np.prod([size // STRIDE for size in data_shape[:-1]]))
  z_e = tf.random.stateless_normal([num_vectors, DIM], [0, 0])
  x = tf.random.stateless_normal([BATCH_SIZE, *data_shape], [0, 1])

  def quantizer_step(settings):
    quantizer = make_quantizer(settings, 1000, seed=0)

    @tf.function
    def step():
      with tf.GradientTape() as tape:
        tape.watch(z_e)
        loss = tf.reduce_sum(quantizer(z_e, training=True)) + sum(quantizer.losses)
      return tape.gradient(loss, [z_e, *quantizer.trainable_weights])

    return step

  def model_step(settings):
    model = make_model(settings, data_shape, 1000, seed=0)
    model.compile(optimizer(1e-3, 1000), "mse", jit_compile=False)
    return lambda: model.train_on_batch(x, x)

  alone = medians({name: quantizer_step(settings) for name, settings in kinds.items() if settings})
  whole = medians({name: model_step(settings) for name, settings in kinds.items()})
  print(f"\n| {data_shape} | quantiser, ms | x | whole step, ms | x |\n|---|---|---|---|---|")
  for name, seconds in whole.items():
    own = f"{1000 * alone[name]:.2f} | {alone[name] / alone['vector']:.2f}" if name in alone else "|"
    print(f"| {name} | {own} | {1000 * seconds:.2f} | {seconds / whole['vector']:.2f} |")


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=pathlib.Path, required=True, help="folder of data and results")
  parser.add_argument("--data", nargs="+", choices=quantiser_data.NAMES, default=quantiser_data.NAMES)
  parser.add_argument("--pictures", default="", help="folder of photographs; default: those of Debian's packages")
  parser.add_argument("--sweeps", nargs="*", choices=quantiser_data.NAMES, default=quantiser_data.NAMES)
  parser.add_argument("--steps", type=int, default=600)
  parser.add_argument("--prior_steps", type=int, default=250)
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--rates", type=float, nargs="+", default=[3e-3, 1e-2, 3e-2])
  parser.add_argument("--times", action="store_true", help="measure the speed instead")
  arguments = parser.parse_args()
  if arguments.times:
    report_times(quantiser_data.IMAGE_SHAPE, KINDS)
    report_times(quantiser_data.SPECTRA_SHAPE, KINDS)
    return
  arguments.workdir.mkdir(parents=True, exist_ok=True)
  tables = []
  for data in arguments.data:
    load = lambda data=data: quantiser_data.load(data, arguments.workdir / "data", arguments.pictures)
    runs = Runs(arguments.workdir, data, load, arguments.steps, arguments.prior_steps)
    tables.append((data, *measure(runs, KINDS, arguments.rates, arguments.seeds, data in arguments.sweeps)))
  for table in tables:
    report(*table)


if __name__ == "__main__":
  main()
