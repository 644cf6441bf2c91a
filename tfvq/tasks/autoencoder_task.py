"""Systems with an autoencoder, and with a prior over its codes."""

import abc
import copy
import functools
import pathlib

import keras
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from tfvq.data.arrays import ArraySource, ClipSource
from tfvq.data.codes import MAX_NUM_VALUES, read_codes, read_manifest, write_codes
from tfvq.errors import UserError
from tfvq.files import sha256
from tfvq.layers import build_quantizer
from tfvq.tasks.prior_task import PriorTask
from tfvq.tasks.task import Stage
from tfvq.training.loading import load_model


class AutoencoderTask(PriorTask):
  """A task with two models: data -> autoencoder -> codes -> prior -> samples -> evaluation.

  A subclass may leave out either model by overriding `has_autoencoder` or `has_prior`.
  """

  @property
  def has_autoencoder(self) -> bool:
    """Whether there is an autoencoder; if not, the prior models the data themselves."""
    return True

  @property
  def has_prior(self) -> bool:
    """Whether there is a prior."""
    return True

  @property
  def has_codes(self) -> bool:
    """Whether the prior models codes."""
    return self.has_autoencoder and self.has_prior

  @property
  def stages(self):
    stages = [Stage("data", self.data_stage)]
    if self.has_autoencoder:
      stages.append(Stage("autoencoder", self.autoencoder_stage, reads=("data",), trains=True))
    if self.has_codes:
      stages.append(Stage("codes", self.codes_stage, reads=("autoencoder",)))
    if self.has_prior:
      stages.append(Stage("prior", self.prior_stage, reads=("codes" if self.has_codes else "data",), trains=True))
      stages.append(Stage("samples", self.samples_stage, reads=("prior",)))
    return (*stages, Stage("evaluation", self.evaluation_stage, reads=(stages[-1].name,)))

  @abc.abstractmethod
  def build_autoencoder(self) -> keras.Model:
    """An untrained autoencoder."""

  @abc.abstractmethod
  def autoencoder_batches(self, model: keras.Model, batch_size: int, step: int) -> tf.data.Dataset:
    """Endless training batches for the `fit` of an autoencoder, or of a part of one, from a step on."""

  @abc.abstractmethod
  def prepare_autoencoder(self, model: keras.Model, train_part) -> None:
    """Called before the first step; `train_part` is that of `tfvq.training.training.train`."""

  @abc.abstractmethod
  def encode_splits(self) -> tuple[dict, dict]:
    """Codes and conditions of every split, and their numbers of values, as `tfvq.data.codes.write_codes` takes them."""

  @property
  def autoencoder_path(self) -> pathlib.Path:
    """The file of the trained autoencoder."""
    return self.workdir.require("autoencoder") / "checkpoint.keras"

  @functools.cached_property
  def autoencoder(self) -> keras.Model:
    """The trained autoencoder."""
    return load_model(self.autoencoder_path)

  @functools.cached_property
  def manifest(self) -> dict:
    """The manifest of the codes.

    Raises:
      UserError: There are no codes, or another autoencoder made them.
    """
    return read_manifest(self.workdir.folder("codes"), sha256(self.autoencoder_path))

  @functools.cached_property
  def codes(self) -> ArraySource | ClipSource:
    """The codes with their conditions."""
    return read_codes(self.workdir.folder("codes"), self.manifest)

  @property
  def num_code_values(self) -> int:
    """K, the largest number of values of a code."""
    return int(np.max(self.manifest["features"]["codes"]["num_values"]))

  def with_autoencoder(self, path):
    """This task with the autoencoder of another file, such as a pruned or a released one, for export.

    Raises:
      UserError: The file is missing or damaged, or its model has other codes.
    """
    model = load_model(path)
    if not _has_same_codebook(model, self.autoencoder):
      raise UserError(
        f"{path} uses a different codebook from the model in {self.workdir.path}: give a model made from that one."
      )
    task = copy.copy(self)
    task.autoencoder = model
    task.exported_path = pathlib.Path(path)
    return task

  @functools.cached_property
  def exported_path(self) -> pathlib.Path:
    """The file of the autoencoder that is exported."""
    return self.autoencoder_path

  def autoencoder_stage(self, facts: dict) -> None:
    """The stage `autoencoder`."""
    self.train_model(
      "autoencoder", self.build_autoencoder, self.autoencoder_batches, facts, prepare=self.prepare_autoencoder
    )

  def codes_stage(self, facts: dict) -> None:
    """The stage `codes`."""
    del facts
    splits, num_values = self.encode_splits()
    write_codes(
      self.workdir.folder("codes"), splits, num_values=num_values, autoencoder_sha256=sha256(self.autoencoder_path)
    )


def _has_same_codebook(model, autoencoder):
  """Whether two autoencoders have the same class and the same codebook, up to the rounding of released models."""
  if type(model) is not type(autoencoder):
    return False
  quantizers = model.quantizer, autoencoder.quantizer
  shape, expected_shape = ((each.embedding_dim, each.num_values, each.code_shape) for each in quantizers)
  if shape != expected_shape:
    return False
  rng = np.random.default_rng(0)
  codes = rng.integers(0, quantizers[0].num_values, [1000, *quantizers[0].code_shape])
  vectors, expected = (np.array(each.decode(codes)) for each in quantizers)
  return np.max(np.abs(vectors - expected)) < 0.01 * np.max(np.abs(expected))


def check_quantizer(config: ConfigDict) -> None:
  """Checks the settings of an autoencoder's quantiser.

  Raises:
    UserError: They cannot work.
  """
  try:
    quantizer = build_quantizer(config.quantizer, config.embedding_dim)
  except ValueError as error:
    raise UserError(f"config.autoencoder.quantizer cannot work: {error}") from error
  if np.max(quantizer.num_values) > MAX_NUM_VALUES:
    raise UserError(
      f"The codes of config.autoencoder.quantizer have {np.max(quantizer.num_values)} values; at most "
      f"{MAX_NUM_VALUES} can be stored: lower levels or num_bits."
    )
