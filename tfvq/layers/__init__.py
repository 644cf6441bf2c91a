"""Keras layers."""

from tfvq.layers.categorical_head import CategoricalHead
from tfvq.layers.causal_conv2d import HorizontalConv2D, VerticalConv2D
from tfvq.layers.codebook_usage import CodebookUsage
from tfvq.layers.gated_block import GatedBlock
from tfvq.layers.residual_block import ResidualBlock
from tfvq.layers.vector_quantizer import VectorQuantizer

__all__ = [
  "CategoricalHead",
  "CodebookUsage",
  "GatedBlock",
  "HorizontalConv2D",
  "ResidualBlock",
  "VectorQuantizer",
  "VerticalConv2D",
]
