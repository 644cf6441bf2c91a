"""Optimisers and learning-rate schedules."""

import keras
from ml_collections import ConfigDict

from tfvq.training.muon import ConvMuon, PruningMuon


def make_optimizer(settings: ConfigDict) -> keras.optimizers.Optimizer:
  """The optimiser and learning-rate schedule of `settings`."""
  if settings.schedule == "cosine":
    warmup_steps = min(settings.warmup_steps, settings.steps // 10)
    learning_rate = keras.optimizers.schedules.CosineDecay(
      initial_learning_rate=settings.learning_rate / 100,
      warmup_target=settings.learning_rate,
      warmup_steps=warmup_steps,
      decay_steps=max(1, settings.steps - warmup_steps),
      alpha=0.005,
    )
  else:
    learning_rate = settings.learning_rate
  clipnorm = settings.clipnorm or None
  if settings.optimizer in ("muon", "pruning_muon"):
    muon = ConvMuon if settings.optimizer == "muon" else PruningMuon
    return muon(
      learning_rate,
      adam_lr_ratio=settings.adam_lr_ratio,
      adam_beta_2=settings.beta_2,
      weight_decay=0.0,
      adam_weight_decay=0.0,
      global_clipnorm=clipnorm,
    )
  return keras.optimizers.Adam(learning_rate, beta_2=settings.beta_2, global_clipnorm=clipnorm)
