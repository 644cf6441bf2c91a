"""Systems with a model of data or of codes: a PixelCNN or a WaveNet."""

import abc
import functools
import pathlib

import keras
import tensorflow as tf

from tfvq.tasks.task import Stage, Task
from tfvq.training.loading import load_model


class PriorTask(Task):
  """A task whose model of the data is called the prior: data -> prior -> samples -> evaluation."""

  @property
  def stages(self):
    return (
      Stage("data", self.data_stage),
      Stage("prior", self.prior_stage, reads=("data",), trains=True),
      Stage("samples", self.samples_stage, reads=("prior",)),
      Stage("evaluation", self.evaluation_stage, reads=("samples",)),
    )

  @property
  def data_folder(self) -> pathlib.Path:
    """Folder for collected data."""
    return self.workdir.folder("data")

  @abc.abstractmethod
  def prepare_data(self) -> dict:
    """Collects or downloads the data; returns facts for the report."""

  @abc.abstractmethod
  def build_prior(self) -> keras.Model:
    """An untrained prior."""

  @abc.abstractmethod
  def prior_batches(self, batch_size: int, step: int) -> tf.data.Dataset:
    """Endless training batches for the prior's `fit`, from a step on."""

  @abc.abstractmethod
  def write_samples(self, folder: pathlib.Path) -> None:
    """Draws samples from the trained models and writes them into a folder."""

  @functools.cached_property
  def prior(self) -> keras.Model:
    """The trained prior."""
    return load_model(self.workdir.require("prior") / "checkpoint.keras")

  def data_stage(self, facts: dict) -> None:
    """The stage `data`."""
    facts.update(self.prepare_data())

  def prior_stage(self, facts: dict) -> None:
    """The stage `prior`."""
    batches = lambda model, batch_size, step: self.prior_batches(batch_size, step)
    self.train_model("prior", self.build_prior, batches, facts)

  def samples_stage(self, facts: dict) -> None:
    """The stage `samples`."""
    del facts
    self.write_samples(self.workdir.folder("samples"))
