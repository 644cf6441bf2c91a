"""The base class of tasks: the code of one kind of system, from its data to its exported functions."""

import abc
import functools
import time
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Self

import keras
import tensorflow as tf
from ml_collections import ConfigDict

from tfvq.configs.common import RUN_RULES
from tfvq.configs.rules import Rules, check_fields
from tfvq.endpoints.endpoint import Endpoint, Signature
from tfvq.errors import UserError
from tfvq.evaluation.metrics import Metric
from tfvq.evaluation.sections import Section, curves_section
from tfvq.files import read_json, write_json
from tfvq.training.callbacks import read_curves
from tfvq.training.report import write_report
from tfvq.training.strategy import check_batch_size, make_strategy
from tfvq.training.training import train
from tfvq.training.workdir import Workdir


class Stage(NamedTuple):
  """A step of a run, which reads its input from the workdir and writes its output there."""

  name: str
  run: Callable[[dict], None]  # its argument is a dict, to which it adds facts such as "num_parameters"
  reads: tuple[str, ...] = ()  # stages whose output it reads
  trains: bool = False
  optional: bool = False  # runs only if --stage names it


class Task(abc.ABC):
  """A run of one kind of system in a workdir.

  A subclass defines the stages, the metrics, the sections of the report and what is exported. No other code refers to
  it: a config names the class in its field `task`, see `tfvq.tasks.find_task`.

  Args:
    config: The config, checked by `validate`.
    workdir: The folder of all files.
    command: The command that started the run, for its report.
  """

  rules: ClassVar[Rules] = Rules()
  """Limits of the config's own fields; `tfvq.configs.common.RUN_RULES` apply as well."""

  metrics: ClassVar[tuple[Metric, ...]] = ()
  """What `measure` returns, with titles and units, in the order of the report."""

  def __init__(self, config: ConfigDict, workdir: Workdir, command: str = ""):
    self.config = config
    self.workdir = workdir
    self.command = command

  @classmethod
  def validate(cls, config: ConfigDict) -> None:
    """Checks a config of this kind of system; subclasses add checks that `rules` cannot express.

    Raises:
      UserError: A field is missing or has a value that cannot work; the message names the field.
    """
    check_fields(config, RUN_RULES | cls.rules)

  @property
  @abc.abstractmethod
  def stages(self) -> tuple[Stage, ...]:
    """The stages of this system, in order; the last one is usually `evaluation_stage`."""

  @property
  def evaluation_splits(self) -> tuple[str, ...]:
    """Names of the splits to measure on; "held_out" is one of them."""
    return ("held_out",)

  @abc.abstractmethod
  def measure(self, split: str) -> dict[str, float]:
    """Metrics of the trained models on a split."""

  def report_sections(self) -> list[Section]:
    """Sections of the report in addition to metrics and curves."""
    return []

  def device_endpoints(self) -> list[Endpoint]:
    """Functions for devices, exported to TFLite and ONNX; empty if nothing is exported."""
    return []

  def server_endpoints(self) -> list[Endpoint]:
    """Other functions, which are exported to ONNX only."""
    return []

  def signatures(self) -> dict[str, Signature]:
    """The signatures of the SavedModel."""
    return {}

  def export_facts(self) -> dict:
    """Facts about the models for export.json."""
    return {}

  def codec_facts(self) -> dict | None:
    """The contents of codec.json, if the TFLite files are a codec for `export.device`, else None."""
    return None

  def with_autoencoder(self, path) -> Self:
    """This task with another autoencoder, for export.

    Raises:
      UserError: The file does not fit, or this system has no autoencoder.
    """
    raise UserError(f"{self.workdir.path} has no autoencoder in whose place {path} could be exported.")

  @functools.cached_property
  def strategy(self) -> tf.distribute.Strategy:
    """The distribution strategy of training.

    Raises:
      UserError: There is no such device, or the number of replicas does not divide the batch size of a stage.
    """
    strategy = make_strategy(self.config.strategy)
    optional = [stage.name for stage in self.stages if stage.optional]
    for name, settings in self.config.train.items():
      if name not in optional:
        check_batch_size(settings.batch_size, name, strategy)
    return strategy

  def train_model(self, name: str, build: Callable[[], keras.Model], batches, facts: dict, **options) -> keras.Model:
    """Trains a model in the folder of a stage, with the settings `config.train[name]`.

    Args:
      name: The stage.
      build: Function that makes the model.
      batches: See `tfvq.training.training.train`.
      facts: The facts of the stage, to which seconds and number of parameters are added.
      **options: Further arguments of `train`.
    """
    settings, folder = self.config.train[name], self.workdir.folder(name)
    model, facts["seconds"] = train(build, batches, settings, folder, title=name, strategy=self.strategy, **options)
    facts["num_parameters"] = model.count_params()
    return model

  def evaluation_stage(self, facts: dict) -> None:
    """The stage `evaluation`: measures every split, and writes metrics.json and the report."""
    began_at = time.monotonic()
    metrics = {split: self.measure(split) for split in self.evaluation_splits}
    for stage in self.stages:
      if self.workdir.is_done(stage.name):
        metrics["held_out"] |= self.workdir.facts(stage.name).get("metrics", {})
    facts["seconds"] = round(time.monotonic() - began_at, 2)
    seconds = {**self.workdir.seconds(), "evaluation": facts["seconds"]}
    # Metrics on held-out data stand at the top, those of other splits under the split's name.
    write_json(self.workdir.path / "metrics.json", {**metrics.pop("held_out"), **metrics, "seconds": seconds})
    self.write_report()

  def add_metrics(self, metrics: dict[str, float]) -> None:
    """Adds the metrics of an optional stage to those of a finished run, and to its report."""
    path = self.workdir.path / "metrics.json"
    if path.exists():
      write_json(path, {**read_json(path), **metrics})
      self.write_report()

  def write_report(self) -> None:
    """Writes report.html from metrics.json and the files of the stages."""
    write_report(
      self.workdir,
      self.metrics,
      [*self.report_sections(), *self._curves()],
      command=self.command,
      config=self.config.to_json(indent=2),
    )

  def _curves(self):
    """Sections with the curves of every trained model, and of parts that were trained before it."""
    shown = []
    for stage in self.stages:
      if stage.trains and not stage.optional:
        folder = self.workdir.folder(stage.name)
        for path in sorted(folder.rglob("curves.csv"), key=lambda path: len(path.parts), reverse=True):
          part = path.parent.relative_to(folder).name
          title = f"Training of the {stage.name}" + (f", {part}" if part else "")
          shown.append(curves_section(title, read_curves(path)))
    return shown
