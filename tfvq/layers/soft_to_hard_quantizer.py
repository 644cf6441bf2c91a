"""The soft-to-hard quantiser."""

import keras
import tensorflow as tf

from tfvq.layers.codebook_quantizer import CodebookQuantizer
from tfvq.ops import nearest_code
from tfvq.ops.quantize import Quantized, with_gradient


@keras.saving.register_keras_serializable("tfvq")
class SoftToHardQuantizer(CodebookQuantizer):
  """In training, replaces each vector by a weighted mean of codebook vectors; otherwise by the nearest one.

  The weight of a codebook vector is proportional to exp(-hardness ||z_e - e||^2). The hardness grows during training,
  so that the mean approaches the nearest codebook vector. Gradients are exact: there is no straight-through estimator.

  Reference: arXiv 1704.00648.
  Deviation: the hardness grows exponentially with the training steps. There is no entropy term.

  Args:
    num_embeddings: K, number of codes, >= 1.
    embedding_dim: D, size of a vector, >= 1; the last dimension of the input.
    initial_hardness: The hardness at the first training step, > 0.
    final_hardness: The hardness from step `annealing_steps` on, at least the first.
    annealing_steps: Number of training steps in which the hardness grows, >= 1.
    seed: Seed of the initial codebook.
    usage_window: Perplexity and codebook usage cover at least this many of the most recent vectors, >= 1.
    **kwargs: As for `Quantizer`.

  Input shape:
    z_e: Float [..., D]. `mask`: as for `Quantizer`.

  Output shape:
    z_q: Shape and dtype of z_e.

  Training behaviour:
    `call(training=True)` returns weighted means, through which the model's loss trains encoder and codebook; no losses
    are added. It holds a weight for each pair of a vector and a code in memory. With `training=False`, z_q is the
    nearest codebook vector, with a straight-through gradient.

  Raises:
    ValueError: An argument is out of its range, or the input's last dimension is not D.

  Example:
    >>> quantizer = SoftToHardQuantizer(num_embeddings=32, embedding_dim=8)
    >>> quantizer(tf.random.normal([2, 50, 8]), training=True).shape
    TensorShape([2, 50, 8])
    >>> quantizer.encode(tf.random.normal([2, 50, 8])).shape
    TensorShape([2, 50])
  """

  def __init__(
    self,
    num_embeddings: int,
    embedding_dim: int,
    initial_hardness: float = 1.0,
    final_hardness: float = 1000.0,
    annealing_steps: int = 10_000,
    seed: int = 0,
    usage_window: int = 2**17,
    **kwargs,
  ):
    super().__init__(num_embeddings, embedding_dim, seed=seed, usage_window=usage_window, **kwargs)
    if not 0 < initial_hardness <= final_hardness:
      raise ValueError(
        "initial_hardness must be positive, and final_hardness at least as large, not "
        f"{initial_hardness}, {final_hardness}."
      )
    if annealing_steps < 1:
      raise ValueError(f"annealing_steps must be at least 1, but is {annealing_steps}.")
    self.initial_hardness = initial_hardness
    self.final_hardness = final_hardness
    self.annealing_steps = annealing_steps
    self.build((None, embedding_dim))

  def _add_weights(self):
    super()._add_weights()
    self._num_updates = self._add_statistic((), "zeros", "num_updates", dtype="int32")

  @property
  def hardness(self) -> tf.Tensor:
    """The hardness of the next training step, a scalar."""
    progress = tf.cast(tf.convert_to_tensor(self._num_updates), self.variable_dtype) / self.annealing_steps
    factor = self.final_hardness / self.initial_hardness
    return self.initial_hardness * tf.pow(tf.cast(factor, progress.dtype), tf.minimum(progress, 1))

  def _quantize(self, z, counted, training):
    del counted
    codebook = self.codebook
    codes = nearest_code(tf.stop_gradient(z), tf.stop_gradient(codebook))
    if not training:
      return Quantized(with_gradient(z, tf.gather(codebook, codes), "straight_through"), codes, {})
    # Squared distances minus ||z_e||^2, which is the same for every code.
    distances = tf.reduce_sum(tf.square(codebook), axis=-1) - 2 * tf.tensordot(z, codebook, [[-1], [-1]])
    weights = tf.nn.softmax(-self.hardness * distances)
    self._num_updates.assign_add(1)
    return Quantized(tf.tensordot(weights, codebook, axes=1), codes, {})

  def get_config(self):
    return {
      **super().get_config(),
      "initial_hardness": self.initial_hardness,
      "final_hardness": self.final_hardness,
      "annealing_steps": self.annealing_steps,
    }
