"""The stages of a run, each reading its input from the workdir and writing its output there.

data -> autoencoder/checkpoint.keras -> codes/*.tfrecord + manifest.json -> prior/checkpoint.keras -> samples/ ->
metrics.json, report.html
"""

import dataclasses
import functools
import time

import keras
import numpy as np
import tensorflow as tf
import tqdm
from ml_collections import ConfigDict

from tfvq import models
from tfvq.data.arrays import ArraySource
from tfvq.data.codes import read_codes, read_manifest, write_codes
from tfvq.errors import UserError
from tfvq.files import sha256, write_json, written_whole
from tfvq.tasks.images import ImageTask
from tfvq.training import evaluation, report
from tfvq.training.training import load_weights, make_strategy, train
from tfvq.training.workdir import Workdir

_BATCH_SIZE = 64  # where nothing is trained


@dataclasses.dataclass
class Run:
  """A config at work in a workdir."""

  config: ConfigDict
  workdir: Workdir
  command: str

  def __post_init__(self):
    keras.utils.set_random_seed(self.config.seed)
    keras.config.set_dtype_policy(self.config.precision)
    self.strategy = make_strategy(self.config.strategy)
    self.task = ImageTask(self.config, self.workdir.folder("data"))

  @property
  def has_codes(self) -> bool:
    """Whether the prior models codes, not data."""
    return "codes" in self.task.stages

  @functools.cached_property
  def autoencoder(self) -> keras.Model:
    """The trained autoencoder."""
    model = self.task.build_autoencoder()
    load_weights(model, self.workdir.require("autoencoder") / "checkpoint.keras")
    return model

  @functools.cached_property
  def prior(self) -> models.PixelCNN:
    """The trained prior."""
    model = self.build_prior()
    load_weights(model, self.workdir.require("prior") / "checkpoint.keras")
    return model

  @functools.cached_property
  def manifest(self) -> dict:
    """The manifest of the codes; those of another autoencoder are refused."""
    checksum = sha256(self.workdir.require("autoencoder") / "checkpoint.keras")
    return read_manifest(self.workdir.folder("codes"), checksum)

  @functools.cached_property
  def values(self) -> ArraySource:
    """What the prior models: a source of {"codes", "label"}."""
    if self.has_codes:
      return read_codes(self.workdir.folder("codes"), self.manifest)
    return self.task.source

  def build_prior(self) -> models.PixelCNN:
    """An untrained prior."""
    if self.has_codes:
      manifest = self.manifest
      return self.task.build_prior(manifest["num_embeddings"], tuple(manifest["code_shape"]), manifest["num_classes"])
    return self.task.build_prior(256, self.task.image_shape, self.task.source.num_classes)

  def prior_inputs(self, batch):
    """A batch as the prior's `fit` takes it: the values, or a pair with their condition."""
    x = batch["codes" if self.has_codes else "image"]
    return ((x, batch["label"]),) if self.config.prior.class_conditional else x


def run_stages(run: Run, stage: str) -> None:
  """Runs one stage, or all that are not done yet, in order.

  Raises:
    UserError: The system has no such stage, its input is missing, or it failed in a way the user can mend.
  """
  stages = run.task.stages
  if stage not in ("all", *stages):
    raise UserError(f"This system has no stage {stage!r}; choose one of all, {', '.join(stages)}.")
  for name in stages if stage == "all" else [stage]:
    if run.workdir.is_done(name):
      print(f"{name}: done already, skipped (delete {run.workdir.folder(name)} to do it again)")
      continue
    if name != "data":
      run.workdir.require("data")
    with run.workdir.running(name) as facts:
      _STAGES[name](run, facts)
  if run.workdir.is_done("evaluation"):
    report.print_summary(run.workdir)


def _data(run, facts):
  facts["num_examples"] = {split: run.task.source.num_examples(split) for split in run.task.source.split_names}


def _autoencoder(run, facts):
  model, facts["seconds"] = train(
    run.task.build_autoencoder,
    lambda step: run.task.source.train(run.config.train.autoencoder.batch_size, run.config.seed, step).map(
      lambda batch: batch["image"]
    ),
    run.config.train.autoencoder,
    run.workdir.folder("autoencoder"),
    title="autoencoder",
    strategy=run.strategy,
    prepare=run.task.adapt_autoencoder,
  )
  facts["num_parameters"] = model.count_params()


def _codes(run, facts):
  del facts
  source = run.task.source
  encode = tf.function(run.autoencoder.encode, reduce_retracing=True)
  splits = {}
  for split in source.split_names:
    parts = []
    for batch in _progress(source, split, f"codes {split}"):
      part = {"codes": encode(batch["image"]).numpy()}
      if "label" in batch:
        part["label"] = batch["label"].numpy()
      parts.append(part)
    splits[split] = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
  write_codes(
    run.workdir.folder("codes"),
    splits,
    num_embeddings=run.config.autoencoder.num_embeddings,
    num_classes=source.num_classes,
    autoencoder_sha256=sha256(run.workdir.folder("autoencoder") / "checkpoint.keras"),
  )


def _prior(run, facts):
  model, facts["seconds"] = train(
    run.build_prior,
    lambda step: run.values.train(run.config.train.prior.batch_size, run.config.seed, step).map(run.prior_inputs),
    run.config.train.prior,
    run.workdir.folder("prior"),
    title="prior",
    strategy=run.strategy,
  )
  facts["num_parameters"] = model.count_params()


def _samples(run, facts):
  del facts
  prior, num = run.prior, run.config.samples.num
  condition = None
  if run.config.prior.class_conditional:
    condition = tf.range(num, dtype=tf.int32) % prior.num_classes
  noise = models.gumbel_noise(run.config.seed, models.grid_noise_shape(prior, num))
  values = tf.function(models.sample_grid)(prior, noise, condition, run.config.samples.temperature)
  images = run.autoencoder.decode(values) if run.has_codes else values
  folder = run.workdir.folder("samples")
  with written_whole(folder / "samples.npz") as temporary:
    np.savez(temporary, values=values, images=evaluation.to_uint8(images))
  report.save_image_grid(folder / "samples.png", evaluation.to_uint8(images), num_columns=8)


def _evaluation(run, facts):
  began_at = time.monotonic()
  splits = [split for split in run.task.source.split_names if split != "train"]
  metrics = {split: evaluation.measure(run, split) for split in splits}
  facts["seconds"] = round(time.monotonic() - began_at, 2)
  seconds = {**run.workdir.seconds(), "evaluation": facts["seconds"]}
  # The figures on held-out data stand at the top, those of other splits under the split's name.
  write_json(run.workdir.path / "metrics.json", {**metrics.pop("held_out"), **metrics, "seconds": seconds})
  report.write_report(run)


def _progress(source, split, title):
  """Batches of a split with a progress bar."""
  num_batches = -(-source.num_examples(split) // _BATCH_SIZE)
  batches = source.batches(split, _BATCH_SIZE)
  return tqdm.tqdm(batches, total=num_batches, desc=title, unit="batch", dynamic_ncols=True)


_STAGES = {
  "data": _data,
  "autoencoder": _autoencoder,
  "codes": _codes,
  "prior": _prior,
  "samples": _samples,
  "evaluation": _evaluation,
}
