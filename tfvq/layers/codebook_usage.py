"""Metrics of codebook usage over a window of vectors."""

from collections.abc import Sequence

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("tfvq")
class CodebookUsage(keras.metrics.Metric):
  """Perplexity and fraction of codes in use over the most recent vectors, independent of the batch size.

  The metric counts the codes of two blocks of vectors: the current one, and the one before. A block is full when it has
  `window` vectors or more. A result covers both blocks, or all vectors since the last reset if there are fewer.

  Args:
    num_embeddings: K, number of codes; a sequence with the number for each code if a vector has several codes.
    window: Vectors per block, >= 1.
    name: Name of the metric.
    prefix: Prefix of the names of the results.

  Example:
    >>> usage = CodebookUsage(num_embeddings=4, window=100)
    >>> usage.update_state([5.0, 5.0, 0.0, 0.0])
    >>> {name: float(value) for name, value in usage.result().items()}
    {'perplexity': 2.0, 'codebook_usage': 0.5, 'nonfinite_vectors': 0.0}
  """

  def __init__(
    self,
    num_embeddings: int | Sequence[int],
    window: int = 2**17,
    name: str = "codebook_usage",
    prefix: str = "",
  ):
    super().__init__(name=name, dtype="float32")
    self.num_embeddings = num_embeddings
    self.window = window
    self.prefix = prefix
    self._sizes = [num_embeddings] if isinstance(num_embeddings, int) else list(num_embeddings)
    self._filling = self.add_variable((sum(self._sizes),), "zeros", name="filling", dtype="float32")
    self._previous = self.add_variable((sum(self._sizes),), "zeros", name="previous", dtype="float32")
    self._nonfinite = self.add_variable((), "zeros", name="nonfinite", dtype="float32")

  def update_state(self, counts, num_nonfinite=0.0, sample_weight=None):
    """Adds a batch.

    Args:
      counts: How often each value was used, float [K]; for several codes their counts concatenated, [sum of all K].
      num_nonfinite: Number of vectors that were not finite.
      sample_weight: Not used.
    """
    del sample_weight
    filling = tf.convert_to_tensor(self._filling)
    full = tf.reduce_sum(filling[: self._sizes[0]]) >= self.window
    self._previous.assign(tf.where(full, filling, self._previous))
    self._filling.assign(tf.where(full, 0.0, filling) + tf.cast(counts, tf.float32))
    self._nonfinite.assign_add(tf.cast(num_nonfinite, tf.float32))

  def result(self):
    """The results by name, float32 scalars.

    `perplexity`: exponential of the entropy in nats, 1..K; for several codes, of their mean entropy; 0 before the first
    vector. `codebook_usage`: fraction of the codes that occurred, 0..1. `nonfinite_vectors`: number of vectors without
    a code since the last reset, because they were not finite.
    """
    counts = tf.convert_to_tensor(self._filling) + tf.convert_to_tensor(self._previous)
    frequencies = [part / tf.maximum(tf.reduce_sum(part), 1) for part in tf.split(counts, self._sizes)]
    entropies_nats = [-tf.reduce_sum(tf.math.xlogy(part, part)) for part in frequencies]
    results = {
      "perplexity": tf.where(tf.reduce_sum(counts) > 0, tf.exp(tf.add_n(entropies_nats) / len(self._sizes)), 0.0),
      "codebook_usage": tf.reduce_mean(tf.cast(counts > 0, tf.float32)),
      "nonfinite_vectors": tf.convert_to_tensor(self._nonfinite),
    }
    return {self.prefix + name: value for name, value in results.items()}

  def get_config(self):
    return {"num_embeddings": self.num_embeddings, "window": self.window, "name": self.name, "prefix": self.prefix}
