"""Builds quantisers from settings."""

from collections.abc import Mapping

from tfvq.errors import UserError
from tfvq.layers.finite_scalar_quantizer import FiniteScalarQuantizer
from tfvq.layers.lookup_free_quantizer import LookupFreeQuantizer
from tfvq.layers.product_quantizer import ProductQuantizer
from tfvq.layers.quantizer import Quantizer
from tfvq.layers.residual_quantizer import ResidualQuantizer
from tfvq.layers.soft_to_hard_quantizer import SoftToHardQuantizer
from tfvq.layers.vector_quantizer import VectorQuantizer


def build_quantizer(settings: Mapping, dim: int, seed: int = 0) -> Quantizer:
  """Builds the quantiser that settings describe.

  Args:
    settings: A mapping with the field `kind` and the fields of this kind, see `tfvq.configs.common.quantizer`. Other
      fields are ignored.
    dim: D, size of the vectors, >= 1.
    seed: Seed of the initial weights and of random draws in training.

  Raises:
    UserError: The kind is unknown, or `num_groups` does not divide D.
    ValueError: A setting is out of its range.

  Example:
    >>> settings = {"kind": "finite_scalar", "levels": (8, 5, 5, 5)}
    >>> build_quantizer(settings, dim=64).encode(tf.random.normal([2, 50, 64])).shape
    TensorShape([2, 50])
  """
  if settings["kind"] not in _KINDS:
    raise UserError(f"Unknown kind of quantiser {settings['kind']!r}: choose one of {', '.join(_KINDS)}.")
  return _KINDS[settings["kind"]](settings, dim, seed)


def _vector(settings, dim, seed, **changes):
  arguments = {name: settings[name] for name in ("commitment_cost", "revival_threshold", "metric", "gradient")}
  decay = settings["decay"] if settings["codebook_update"] == "moving_average" else None
  return VectorQuantizer(settings["num_embeddings"], dim, decay=decay, seed=seed, **{**arguments, **changes})


def _residual(settings, dim, seed):
  levels = [_vector(settings, dim, seed + level, metric="euclidean") for level in range(settings["num_levels"])]
  return ResidualQuantizer(levels, dropout=settings["level_dropout"], gradient=settings["gradient"], seed=seed)


def _product(settings, dim, seed):
  num_groups = settings["num_groups"]
  if num_groups < 1 or dim % num_groups:
    raise UserError(f"num_groups={num_groups} does not divide the {dim} dimensions of a vector: choose a divisor.")
  return ProductQuantizer([_vector(settings, dim // num_groups, seed + group) for group in range(num_groups)])


def _finite_scalar(settings, dim, seed):
  return FiniteScalarQuantizer(settings["levels"], dim, seed=seed)


def _lookup_free(settings, dim, seed):
  arguments = {name: settings[name] for name in ("commitment_cost", "entropy_weight")}
  return LookupFreeQuantizer(settings["num_bits"], dim, seed=seed, **arguments)


def _soft_to_hard(settings, dim, seed):
  arguments = {name: settings[name] for name in ("initial_hardness", "final_hardness", "annealing_steps")}
  return SoftToHardQuantizer(settings["num_embeddings"], dim, seed=seed, **arguments)


_KINDS = {
  "vector": _vector,
  "residual": _residual,
  "product": _product,
  "finite_scalar": _finite_scalar,
  "lookup_free": _lookup_free,
  "soft_to_hard": _soft_to_hard,
}
