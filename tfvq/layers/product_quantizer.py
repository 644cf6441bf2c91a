"""A product quantiser: one quantiser for each group of channels."""

import keras
import numpy as np
import tensorflow as tf

from tfvq.layers.quantizer import Quantizer
from tfvq.ops.quantize import Quantized


@keras.saving.register_keras_serializable("tfvq")
class ProductQuantizer(Quantizer):
  """Splits the channels of each vector into groups, and quantises each group with a quantiser of its own.

  G groups with K codebook vectors each can represent K^G different vectors.

  Reference: Jegou et al., "Product quantization for nearest neighbor search", IEEE TPAMI 33(1), 2011, section II.B.

  Args:
    quantizers: G quantisers of any kind whose codes have the same shape. The first one takes the first channels.
    usage_window: Perplexity and codebook usage cover at least this many of the most recent vectors, >= 1.
    **kwargs: As for `Quantizer`.

  Input shape:
    z_e: Float [..., D], D the sum of the groups' dimensions. `mask`: as for `Quantizer`.

  Output shape:
    z_q: Shape and dtype of z_e. The codes of a vector have the shape (G,), followed by that of a group's codes.

  Training behaviour:
    Each quantiser learns as it does by itself. Its losses are weighted by its fraction of the channels, so that their
    sum is a mean over all channels. `perplexity` is the exponential of the mean of the groups' entropies.

  Raises:
    ValueError: There is no quantiser, or their codes have different shapes.

  Example:
    >>> quantizer = ProductQuantizer([VectorQuantizer(16, 8, seed=seed) for seed in range(4)])
    >>> quantizer.encode(tf.random.normal([2, 50, 32])).shape
    TensorShape([2, 50, 4])
    >>> quantizer.bits
    16.0
  """

  def __init__(self, quantizers: list[Quantizer], usage_window: int = 2**17, **kwargs):
    if len({quantizer.code_shape for quantizer in quantizers}) != 1:
      raise ValueError(
        "A product quantiser needs quantisers whose codes have the same shape, not "
        f"{[each.code_shape for each in quantizers]}."
      )
    sizes = [quantizer.num_values for quantizer in quantizers]
    super().__init__(
      sum(quantizer.embedding_dim for quantizer in quantizers),
      num_values=sizes[0] if len(set(sizes)) == 1 else tuple(sizes),
      code_shape=(len(quantizers), *quantizers[0].code_shape),
      usage_window=usage_window,
      **kwargs,
    )
    self.quantizers = list(quantizers)
    self._take_parts(self.quantizers)
    self._dims = [quantizer.embedding_dim for quantizer in quantizers]
    self.build((None, self.embedding_dim))

  def adapt(self, z_e) -> None:
    for quantizer, group in zip(self.quantizers, self._split(tf.convert_to_tensor(z_e)), strict=True):
      quantizer.adapt(group)

  def margin(self, z_e):
    groups = self._split(tf.convert_to_tensor(z_e))
    return np.min([quantizer.margin(group) for quantizer, group in zip(self.quantizers, groups, strict=True)], axis=0)

  def _split(self, z):
    return tf.split(z, self._dims, axis=-1)

  @property
  def _axis(self):
    """The axis of codes that counts the groups."""
    return -len(self.code_shape)

  def _quantize(self, z, counted, training):
    vectors, codes, losses = [], [], {}
    for number, (quantizer, group) in enumerate(zip(self.quantizers, self._split(z), strict=True)):
      quantized = quantizer._quantize(group, counted, training and quantizer.trainable)
      vectors.append(quantized.z_q)
      codes.append(quantized.codes)
      weight = quantizer.embedding_dim / self.embedding_dim
      losses |= {f"{name}_{number}": weight * loss for name, loss in quantized.losses.items()}
    return Quantized(tf.concat(vectors, axis=-1), tf.stack(codes, axis=self._axis), losses)

  def _encode(self, z, exact):
    groups = zip(self.quantizers, self._split(z), strict=True)
    return tf.stack([quantizer._encode(group, exact) for quantizer, group in groups], axis=self._axis)

  def _decode(self, codes):
    groups = zip(self.quantizers, tf.unstack(codes, axis=self._axis), strict=True)
    return tf.concat([quantizer._decode(group) for quantizer, group in groups], axis=-1)

  def get_config(self):
    return {**super().get_config(), "quantizers": self._serialized(self.quantizers)}

  @classmethod
  def from_config(cls, config):
    return cls(**{**config, "quantizers": cls._deserialized(config["quantizers"])})
