"""Pure functions on tensors."""

from tfvq.ops.cell_margin import cell_margin
from tfvq.ops.kmeans import kmeans
from tfvq.ops.nearest_code import nearest_code
from tfvq.ops.quantize import Quantized, quantize

__all__ = ["Quantized", "cell_margin", "kmeans", "nearest_code", "quantize"]
