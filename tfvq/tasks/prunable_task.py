"""Systems whose decoder is a WaveNet that can be pruned."""

import abc

import numpy as np

from tfvq.evaluation.metrics import Metric
from tfvq.files import atomic_write
from tfvq.models.wavenet_pruning import masks_of, remove_pruned
from tfvq.tasks.autoencoder_task import AutoencoderTask
from tfvq.tasks.task import Stage
from tfvq.training.pruning import Pruning, apply_masks
from tfvq.training.training import train

PRUNING_METRICS = (
  Metric("nats_of_dense", "... decoder fine-tuned for as many steps, not pruned", "nats"),
  Metric("nats_of_pruned", "... decoder pruned", "nats"),
  Metric("decoder_weights_of_dense", "weights of the decoder"),
  Metric("decoder_weights_of_pruned", "... pruned"),
)


class PrunableTask(AutoencoderTask):
  """A task with the optional stage `prune`, which writes prune/model.keras, if the config has settings for it."""

  @property
  def stages(self):
    prune = Stage("prune", self.prune_stage, reads=("autoencoder",), trains=True, optional=True)
    return (*super().stages, prune) if "prune" in self.config.train else super().stages

  @abc.abstractmethod
  def freeze_codes(self, model, frozen: bool = True) -> None:
    """Freezes the layers that the codes depend on, or unfreezes them."""

  @abc.abstractmethod
  def loss_nats(self, model) -> float:
    """The held-out loss of an autoencoder in nats, to compare the pruned one with others."""

  def prune_stage(self, facts: dict) -> None:
    """Fine-tunes the trained autoencoder twice, with and without pruning its decoder, and compares the losses."""
    folder = self.workdir.folder("prune")
    pruning, settings = self.config.pruning, self.config.train.prune.copy_and_resolve_references()
    settings.initial_weights = str(self.autoencoder_path)
    choose = masks_of(pruning.method, pruning.block_size)

    def build():
      model = self.build_autoencoder()
      self.freeze_codes(model)
      return model

    def fine_tune(kind, callbacks):
      names = {"folder": folder / kind, "title": f"prune, {kind}", "strategy": self.strategy}
      return train(build, self.autoencoder_batches, settings, extra_callbacks=callbacks, **names)

    dense, dense_seconds = fine_tune("dense", lambda model: [])
    ramp_steps = max(1, int(pruning.ramp * settings.steps))
    prune = lambda model: [Pruning(model.decoder.wavenet, choose, pruning.sparsity, ramp_steps)]
    pruned, seconds = fine_tune("pruned", prune)
    apply_masks(choose(pruned.decoder.wavenet, pruning.sparsity))
    if pruning.method != "blocks":
      pruned = pruned.with_decoder(pruned.decoder.with_wavenet(remove_pruned(pruned.decoder.wavenet)))
    with atomic_write(folder / "model.keras") as temporary:
      pruned.save(temporary)
    facts["seconds"] = round(dense_seconds + seconds, 2)
    facts["metrics"] = {
      "nats_before_pruning": self.loss_nats(self.autoencoder),
      "nats_of_dense": self.loss_nats(dense),
      "nats_of_pruned": self.loss_nats(pruned),
      "decoder_weights_of_dense": _num_weights(dense.decoder.wavenet),
      "decoder_weights_of_pruned": _num_weights(pruned.decoder.wavenet),
    }
    self.add_metrics(facts["metrics"])


def _num_weights(model):
  """Weights that are not zero."""
  return int(sum(np.count_nonzero(value) for value in model.get_weights()))
