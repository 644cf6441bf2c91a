"""Pure functions on tensors."""

from tfvq.ops.kmeans import kmeans
from tfvq.ops.nearest_code import nearest_code
from tfvq.ops.quantize import LatentLosses, Quantized, quantize

__all__ = ["LatentLosses", "Quantized", "kmeans", "nearest_code", "quantize"]
