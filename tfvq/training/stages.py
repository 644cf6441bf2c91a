"""The stages of a run, each reading its input from the workdir and writing its output there.

data -> autoencoder/checkpoint.keras -> codes/*.tfrecord + manifest.json -> prior/checkpoint.keras -> samples/ ->
metrics.json, report.html

autoencoder/checkpoint.keras -> prune/model.keras, where a system has that stage.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from tfvq.data.arrays import ArraySource
from tfvq.data.codes import read_codes, read_manifest, write_codes
from tfvq.errors import UserError
from tfvq.files import atomic_write, read_json, sha256, write_json
from tfvq.startup import start_xla
from tfvq.tasks import TASKS
from tfvq.training import report
from tfvq.training.loading import load_weights
from tfvq.training.pruning import Pruning, apply_masks, masks_of, shrunk
from tfvq.training.training import check_batch_size, make_strategy, train
from tfvq.training.workdir import Workdir


@dataclasses.dataclass
class Run:
  """A config at work in a workdir.

  Making one sets the process's random seeds and Keras's dtype policy to the config's.

  Attributes:
    config: See `tfvq.configs`.
    workdir: Where everything is kept.
    command: What the report says that the run was made by.
    task: The system's `tfvq.tasks.Task`.
  """

  config: ConfigDict
  workdir: Workdir
  command: str

  def __post_init__(self):
    keras.utils.set_random_seed(self.config.seed)
    keras.config.set_dtype_policy(self.config.precision)
    self.task = TASKS[self.config.task](self.config, self.workdir.folder("data"))

  @functools.cached_property
  def strategy(self) -> tf.distribute.Strategy:
    """The distribution strategy of training.

    Raises:
      UserError: There is no such device, or its replicas cannot share the batches of a stage.
    """
    strategy = make_strategy(self.config.strategy)
    for name, settings in self.config.train.items():
      if name not in self.task.extra_stages:
        check_batch_size(settings.batch_size, name, strategy)
    return strategy

  @functools.cached_property
  def autoencoder(self) -> keras.Model:
    """The trained autoencoder."""
    model = self.task.build_autoencoder()
    load_weights(model, self.workdir.require("autoencoder") / "checkpoint.keras")
    return model

  @functools.cached_property
  def prior(self) -> keras.Model:
    """The trained prior."""
    model = self.task.build_prior(self.manifest)
    load_weights(model, self.workdir.require("prior") / "checkpoint.keras")
    return model

  @functools.cached_property
  def manifest(self) -> dict | None:
    """The manifest of the codes; those of another autoencoder are refused. None if the prior models data."""
    if not self.task.has_codes:
      return None
    checksum = sha256(self.workdir.require("autoencoder") / "checkpoint.keras")
    return read_manifest(self.workdir.folder("codes"), checksum)

  @functools.cached_property
  def codes(self) -> ArraySource | None:
    """The codes, a source of {"codes", "label"}; None if the prior models data."""
    return read_codes(self.workdir.folder("codes"), self.manifest) if self.task.has_codes else None


def open_run(path) -> Run:
  """The run whose workdir this is.

  Raises:
    UserError: It is no run's folder, or one that another version made.
  """
  config_path = pathlib.Path(path) / "config.json"
  if not os.path.exists(config_path):  # unlike the method, never raises
    raise UserError(f"{path} is not the folder of a run: it has no config.json.")
  config = read_json(config_path)
  if config.get("task") not in TASKS:
    raise UserError(f"{path} was made by another version of this package: train it again.")
  return Run(ConfigDict(config), Workdir(path, config), command="")


def run_stages(run: Run, stage: str) -> None:
  """Runs one stage, or all that are not done yet, in order.

  Raises:
    UserError: The system has no such stage, its input is missing, or it failed in a way the user can mend.
  """
  stages, extra = run.task.stages, run.task.extra_stages
  if stage not in ("all", *stages, *extra):
    raise UserError(f"This system has no stage {stage!r}; choose one of all, {', '.join((*stages, *extra))}.")
  chosen = stages if stage == "all" else [stage]
  if any(name in _TRAINING and not run.workdir.is_done(name) for name in chosen):
    _ = run.strategy  # some can be made only before TensorFlow has run anything
  start_xla()
  with contextlib.ExitStack() as stack:
    for name in chosen:
      if run.workdir.is_done(name):
        print(f"{name}: done already, skipped (delete {run.workdir.folder(name)} to do it again)")
        continue
      stack.enter_context(run.workdir.held())  # to the last stage, so that no other process comes in between
      if name != "data":
        run.workdir.require("data")
      _refuse_stale(run, name)
      with run.workdir.running(name) as facts:
        _STAGES[name](run, facts)
  if run.workdir.is_done("evaluation"):
    report.print_summary(run.workdir)


def _refuse_stale(run, stage):
  """Refuses to run a stage again while later stages stand that were made of what it made before."""
  stages, extra = run.task.stages, run.task.extra_stages
  later = stages[stages.index(stage) + 1 :] if stage in stages else ()
  stale = [name for name in (*later, *(extra if "autoencoder" in (stage, *later) else ())) if run.workdir.is_done(name)]
  if stale:
    raise UserError(
      f"{run.workdir.path} holds what was made of an earlier `{stage}`: delete {', '.join(stale)} there as well."
    )


def _data(run, facts):
  facts.update(run.task.prepare_data())


def _autoencoder(run, facts):
  model, facts["seconds"] = train(
    run.task.build_autoencoder,
    run.task.autoencoder_batches,
    run.config.train.autoencoder,
    run.workdir.folder("autoencoder"),
    title="autoencoder",
    strategy=run.strategy,
    prepare=run.task.prepare_autoencoder,
  )
  facts["num_parameters"] = model.count_params()


def _codes(run, facts):
  del facts
  write_codes(
    run.workdir.folder("codes"),
    run.task.encode_splits(run.autoencoder),
    num_embeddings=run.config.autoencoder.num_embeddings,
    num_classes=run.task.num_classes,
    autoencoder_sha256=sha256(run.workdir.folder("autoencoder") / "checkpoint.keras"),
  )


def _prior(run, facts):
  model, facts["seconds"] = train(
    lambda: run.task.build_prior(run.manifest),
    lambda batch_size, step: run.task.prior_batches(run.codes, batch_size, step),
    run.config.train.prior,
    run.workdir.folder("prior"),
    title="prior",
    strategy=run.strategy,
  )
  facts["num_parameters"] = model.count_params()


def _samples(run, facts):
  del facts
  run.task.write_samples(run, run.workdir.folder("samples"))


def _prune(run, facts):
  """Fine-tunes the trained autoencoder twice, once while its decoder is pruned, and compares."""
  source = run.workdir.require("autoencoder") / "checkpoint.keras"
  pruning, settings = run.config.pruning, run.config.train.prune.copy_and_resolve_references()
  settings.initial_weights = str(source)
  choose = masks_of(pruning.method, pruning.block_size)

  def build():
    model = run.task.build_autoencoder()
    run.task.freeze_codes(model)
    return model

  def fine_tuned(kind, callbacks):
    folder = run.workdir.folder("prune") / kind
    return train(
      build,
      run.task.autoencoder_batches,
      settings,
      folder,
      title=f"prune, {kind}",
      strategy=run.strategy,
      extra_callbacks=callbacks,
    )

  dense, dense_seconds = fine_tuned("dense", lambda model: [])
  ramp_steps = max(1, int(pruning.ramp * settings.steps))
  pruned, seconds = fine_tuned("pruned", lambda model: [Pruning(model.decoder, choose, pruning.sparsity, ramp_steps)])
  apply_masks(choose(pruned.decoder, pruning.sparsity))
  if pruning.method != "blocks":
    pruned = run.task.with_decoder(pruned, shrunk(pruned.decoder))
  with atomic_write(run.workdir.folder("prune") / "model.keras") as temporary:
    pruned.save(temporary)
  facts["seconds"] = round(dense_seconds + seconds, 2)
  count = lambda model: int(sum(np.count_nonzero(value) for value in model.decoder.get_weights()))
  facts["figures"] = {
    "nats_before_pruning": run.task.loss_nats(run.autoencoder),
    "nats_of_dense": run.task.loss_nats(dense),
    "nats_of_pruned": run.task.loss_nats(pruned),
    "decoder_weights_of_dense": count(dense),
    "decoder_weights_of_pruned": count(pruned),
  }
  if run.workdir.is_done("evaluation"):
    metrics_path = run.workdir.path / "metrics.json"
    write_json(metrics_path, {**read_json(metrics_path), **facts["figures"]})
    report.write_report(run)


def _evaluation(run, facts):
  began_at = time.monotonic()
  metrics = {split: run.task.measure(run, split) for split in run.task.evaluation_splits}
  if run.workdir.is_done("prune"):
    metrics["held_out"] |= run.workdir.facts("prune")["figures"]
  facts["seconds"] = round(time.monotonic() - began_at, 2)
  seconds = {**run.workdir.seconds(), "evaluation": facts["seconds"]}
  # The figures on held-out data stand at the top, those of other splits under the split's name.
  write_json(run.workdir.path / "metrics.json", {**metrics.pop("held_out"), **metrics, "seconds": seconds})
  report.write_report(run)


_TRAINING = ("autoencoder", "prior", "prune")
_STAGES = {
  "data": _data,
  "autoencoder": _autoencoder,
  "codes": _codes,
  "prior": _prior,
  "samples": _samples,
  "prune": _prune,
  "evaluation": _evaluation,
}
