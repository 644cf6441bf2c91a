"""The finite scalar quantiser."""

import keras
import numpy as np
import tensorflow as tf

from tfvq.layers.scalar_quantizer import ScalarQuantizer

_TANH_ERROR = 1e-6  # an upper bound for implementations in float32


@keras.saving.register_keras_serializable("tfvq")
class FiniteScalarQuantizer(ScalarQuantizer):
  """Bounds each of a few channels by tanh and rounds it to a few levels; there is no codebook.

  Reference: arXiv 2309.15505, section 3.1; levels: section 3.2, table 1.
  Deviation: the levels of a channel are symmetric about zero, also if their number is even; the paper then shifts them
  by half a step (appendix A.1).

  Args:
    levels: Number of levels of each channel, C integers >= 2 whose product K is at most 2^24. The paper recommends
      (8, 6, 5) for 2^8 codes, (8, 5, 5, 5) for 2^10, (7, 5, 5, 5, 5) for 2^12, (8, 8, 8, 6, 5) for 2^14 and
      (8, 8, 8, 5, 5, 5) for 2^16.
    embedding_dim: D, size of a vector; None means C. If D is not C, learned linear maps project from D to C dimensions
      and back.
    seed: Seed of the initial linear maps.
    usage_window: Perplexity and codebook usage cover at least this many of the most recent vectors, >= 1.
    **kwargs: As for `Quantizer`.

  Input shape:
    z_e: Float [..., D]. `mask`: as for `Quantizer`.

  Output shape:
    z_q: Shape and dtype of z_e; values in -1..1 if there are no linear maps.

  Training behaviour:
    There are no losses. The gradient passes straight through the rounding. `adapt` initialises the linear maps from the
    principal components of data.

  Raises:
    ValueError: An argument is out of its range.

  Example:
    >>> quantizer = FiniteScalarQuantizer((8, 5, 5, 5))
    >>> quantizer.encode(tf.random.normal([2, 50, 4])).shape
    TensorShape([2, 50])
    >>> quantizer.num_values
    1000
  """

  def __init__(
    self,
    levels: tuple[int, ...] = (8, 5, 5, 5),
    embedding_dim: int | None = None,
    seed: int = 0,
    usage_window: int = 2**17,
    **kwargs,
  ):
    super().__init__(levels, embedding_dim, seed, usage_window=usage_window, **kwargs)

  @property
  def levels(self) -> tuple[int, ...]:
    """Number of levels of each channel."""
    return self._levels

  def _bounded(self, channels):
    return tf.tanh(channels)

  def _digits(self, channels):
    highest = tf.constant(self.levels, channels.dtype) - 1
    return tf.cast(tf.round((self._bounded(channels) + 1) / 2 * highest), tf.int32)

  def _channel_margins(self, channels):
    margins = np.empty_like(channels)
    for channel, levels in enumerate(self.levels):
      middles = (2 * np.arange(levels - 1) + 1) / (levels - 1) - 1  # of each two neighbouring values
      distances = np.abs(channels[..., channel, np.newaxis] - np.arctanh(middles))
      margins[..., channel] = np.min(distances - _TANH_ERROR / (1 - middles**2), axis=-1)
    return margins

  def get_config(self):
    return {**super().get_config(), "levels": self.levels}
