"""The base class of quantisers with a learned codebook."""

import keras
import tensorflow as tf

from tfvq.layers.quantizer import Quantizer
from tfvq.ops import cell_margin, kmeans, nearest_code


class CodebookQuantizer(Quantizer):
  """A quantiser whose code is the index of the nearest of K learned codebook vectors.

  Subclasses implement `_quantize`.

  Args:
    num_embeddings: K, number of codes, >= 1.
    embedding_dim: D, size of a vector, >= 1.
    seed: Seed of the initial codebook.
    **kwargs: As for `Quantizer`.
  """

  # Whether the codebook is learned by gradients.
  codebook_is_trainable = True

  def __init__(self, num_embeddings: int, embedding_dim: int, seed: int = 0, **kwargs):
    if num_embeddings < 1 or embedding_dim < 1:
      raise ValueError(f"num_embeddings and embedding_dim must be at least 1, not {num_embeddings}, {embedding_dim}.")
    super().__init__(embedding_dim, num_values=num_embeddings, **kwargs)
    self.num_embeddings = num_embeddings
    self.seed = seed

  def _add_weights(self):
    self._codebook = self.add_weight(
      shape=(self.num_embeddings, self.embedding_dim),
      # Vectors with a norm of about 1, like the outputs of an untrained encoder.
      initializer=keras.initializers.VarianceScaling(1.0, "fan_out", "uniform", seed=self.seed),
      trainable=self.codebook_is_trainable,
      aggregation="mean" if self.codebook_is_trainable else "only_first_replica",
      name="codebook",
    )

  @property
  def codebook(self) -> tf.Tensor:
    """The codebook, float [K, D]."""
    return tf.convert_to_tensor(self._codebook)

  def set_codebook(self, values) -> None:
    """Sets the codebook to `values`, float [K, D]."""
    self._codebook.assign(values)

  def adapt(self, z_e, num_iterations: int = 10) -> None:
    """Sets the codebook to the k-means centres of data before training.

    Args:
      z_e: Float [..., D], at least one vector. Must be called outside any `tf.function`.
      num_iterations: Iterations of Lloyd's algorithm, >= 0.
    """
    vectors = tf.reshape(tf.cast(z_e, self.variable_dtype), [-1, self.embedding_dim])
    self.set_codebook(kmeans(vectors, self.num_embeddings, num_iterations, self.seed))

  def margin(self, z_e):
    return cell_margin(z_e, self.codebook)

  def _encode(self, z, exact):
    return nearest_code(z, self.codebook, exact)

  def _decode(self, codes):
    return tf.gather(self.codebook, codes)

  def get_config(self):
    return {
      **super().get_config(),
      "num_embeddings": self.num_embeddings,
      "embedding_dim": self.embedding_dim,
      "seed": self.seed,
    }
