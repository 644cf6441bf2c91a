"""Metrics of how much of a codebook is in use, over a window of vectors."""

from collections.abc import Sequence

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("tfvq")
class CodebookUsage(keras.metrics.Metric):
  """Perplexity and share of codes in use over the most recent vectors, whatever the batch size.

  Two blocks of at least `window` vectors are kept: one being filled, one before it. Both count, so that a result covers
  between one and two windows once as many vectors have been seen, and all vectors since the last reset before that.

  Args:
    num_embeddings: K, number of codes; or K of each code, where a vector has several.
    window: Vectors per block, >= 1.
    name: Name of the metric.
    prefix: Put in front of the names of the results.

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
      counts: Number of uses of each value, float [K]; of several codes one after another, float [sum of all K].
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
    """The metrics, each a float32 scalar.

    `perplexity`: exp of the entropy in nats, 1..K, or 0 before any vector; of several codes, exp of their mean entropy.
    `codebook_usage`: share of codes in use, 0..1. `nonfinite_vectors`: vectors since the last reset that were not
    finite, and therefore had no code.
    """
    counts = tf.convert_to_tensor(self._filling) + tf.convert_to_tensor(self._previous)
    shares = [part / tf.maximum(tf.reduce_sum(part), 1) for part in tf.split(counts, self._sizes)]
    entropies_nats = [-tf.reduce_sum(tf.math.xlogy(share, share)) for share in shares]
    figures = {
      "perplexity": tf.where(tf.reduce_sum(counts) > 0, tf.exp(tf.add_n(entropies_nats) / len(self._sizes)), 0.0),
      "codebook_usage": tf.reduce_mean(tf.cast(counts > 0, tf.float32)),
      "nonfinite_vectors": tf.convert_to_tensor(self._nonfinite),
    }
    return {self.prefix + name: value for name, value in figures.items()}

  def get_config(self):
    return {"num_embeddings": self.num_embeddings, "window": self.window, "name": self.name, "prefix": self.prefix}
