"""Keras layers."""

from tfvq.layers.audio_values import AudioValues
from tfvq.layers.build_quantizer import build_quantizer
from tfvq.layers.categorical_head import CategoricalHead
from tfvq.layers.causal_conv2d import HorizontalConv2D, VerticalConv2D
from tfvq.layers.codebook_usage import CodebookUsage
from tfvq.layers.dense import Dense
from tfvq.layers.dilated_block import DilatedBlock
from tfvq.layers.finite_scalar_quantizer import FiniteScalarQuantizer
from tfvq.layers.gated_block import GatedBlock
from tfvq.layers.log_mel import LogMel
from tfvq.layers.logistic_mixture_head import LogisticMixtureHead
from tfvq.layers.lookup_free_quantizer import LookupFreeQuantizer
from tfvq.layers.product_quantizer import ProductQuantizer
from tfvq.layers.quantizer import Quantizer
from tfvq.layers.residual_block import ResidualBlock
from tfvq.layers.residual_quantizer import ResidualQuantizer
from tfvq.layers.soft_to_hard_quantizer import SoftToHardQuantizer
from tfvq.layers.vector_quantizer import VectorQuantizer
from tfvq.layers.voice_perturbation import VoicePerturbation

__all__ = [
  "AudioValues",
  "CategoricalHead",
  "CodebookUsage",
  "Dense",
  "DilatedBlock",
  "FiniteScalarQuantizer",
  "GatedBlock",
  "HorizontalConv2D",
  "LogMel",
  "LogisticMixtureHead",
  "LookupFreeQuantizer",
  "ProductQuantizer",
  "Quantizer",
  "ResidualBlock",
  "ResidualQuantizer",
  "SoftToHardQuantizer",
  "VectorQuantizer",
  "VerticalConv2D",
  "VoicePerturbation",
  "build_quantizer",
]
