"""What a task is: all that differs between images, speech and WaveNets."""

import abc
import pathlib

from ml_collections import ConfigDict

from tfvq.layers import VectorQuantizer


class Task(abc.ABC):
  """Data, networks and conditions of a kind of system, and what is written and measured of it.

  A task's methods are called by the stages of a run, see `tfvq.training.stages`; `run` has the trained `autoencoder`
  and `prior`, the `codes` with their `manifest` (both None where the prior models the data themselves) and the
  `workdir`.

  Args:
    config: The config.
    data_folder: Where data that are dear to make are kept.
  """

  def __init__(self, config: ConfigDict, data_folder: pathlib.Path):
    self.config = config
    self.data_folder = data_folder

  @property
  @abc.abstractmethod
  def stages(self) -> tuple[str, ...]:
    """The stages of this system, in order."""

  @property
  def extra_stages(self) -> tuple[str, ...]:
    """Stages that are run only if they are asked for by name."""
    return ()

  @property
  def has_codes(self) -> bool:
    """Whether the prior models codes, not data."""
    return "codes" in self.stages

  @property
  def evaluation_splits(self) -> tuple[str, ...]:
    """Splits to measure on; "held_out" first."""
    return ("held_out",)

  @property
  @abc.abstractmethod
  def num_classes(self) -> int:
    """Number of labels of the codes; 0 if they have none."""

  @abc.abstractmethod
  def prepare_data(self) -> dict:
    """Collects or fetches the data; returns facts worth keeping."""

  @abc.abstractmethod
  def build_prior(self, manifest: dict | None):
    """An untrained prior over the codes that a manifest describes, or over data if there is none."""

  @abc.abstractmethod
  def prior_batches(self, codes, batch_size: int, step: int):
    """Endless training batches for the prior's `fit`, from a step on: a `tf.data.Dataset`."""

  @abc.abstractmethod
  def write_samples(self, run, folder: pathlib.Path) -> None:
    """Draws samples from the trained models and writes them into a folder."""

  @abc.abstractmethod
  def measure(self, run, split: str) -> dict:
    """Figures of the trained models on a split; their titles are in `tfvq.training.report`."""

  @abc.abstractmethod
  def report_sections(self, run) -> list:
    """What the report shows beside figures and curves: `tfvq.evaluation.sections.Section`s."""


class AutoencoderTask(Task):
  """A task whose systems have the stages `autoencoder` and `codes`, or may have them."""

  @abc.abstractmethod
  def build_autoencoder(self):
    """An untrained autoencoder, a Keras model."""

  @abc.abstractmethod
  def autoencoder_batches(self, batch_size: int, step: int):
    """Endless training batches for the autoencoder's `fit`, from a step on: a `tf.data.Dataset`."""

  @abc.abstractmethod
  def prepare_autoencoder(self, model, train_part) -> None:
    """What is done before the first step; `train_part` as for `tfvq.training.training.train`."""

  @abc.abstractmethod
  def encode_splits(self, autoencoder) -> dict:
    """Codes and labels of every split, as `tfvq.data.codes.write_codes` takes them."""


class PrunableTask(AutoencoderTask):
  """A task whose decoders can be pruned."""

  extra_stages = ("prune",)

  @abc.abstractmethod
  def freeze_codes(self, model, frozen: bool = True) -> None:
    """Keeps the codes as they are in further training, or no longer."""

  @abc.abstractmethod
  def with_decoder(self, model, decoder):
    """The same autoencoder with another decoder."""

  @abc.abstractmethod
  def loss_nats(self, model) -> float:
    """The held-out loss of an autoencoder in nats, by which the pruned one is compared."""


def build_quantizer(config: ConfigDict, seed: int) -> VectorQuantizer:
  """The quantiser that an autoencoder's settings describe, see `tfvq.configs.common`."""
  return VectorQuantizer(
    config.num_embeddings,
    config.embedding_dim,
    commitment_cost=config.commitment_cost,
    decay=config.decay if config.codebook_update == "moving_average" else None,
    revival_threshold=config.revival_threshold,
    seed=seed,
  )
