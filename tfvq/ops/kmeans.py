"""k-means clustering, which initialises codebooks from data."""

import tensorflow as tf

from tfvq.ops.nearest_code import is_finite, nearest_code


@tf.function
def _lloyd_step(vectors, centres, replacements):
  """One iteration of Lloyd's algorithm; a centre without vectors is set to its row of `replacements`."""
  num_centres = centres.shape[0]
  codes = nearest_code(vectors, centres)
  counts = tf.math.unsorted_segment_sum(tf.ones_like(vectors[:, 0]), codes, num_centres)
  sums = tf.math.unsorted_segment_sum(vectors, codes, num_centres)
  used = (counts > 0)[:, tf.newaxis]
  return tf.where(used, sums / tf.maximum(counts, 1)[:, tf.newaxis], replacements)


def kmeans(vectors: tf.Tensor, num_centres: int, num_iterations: int = 10, seed: int = 0) -> tf.Tensor:
  """Runs Lloyd's algorithm for k-means, starting from random vectors.

  Args:
    vectors: Float [N, D]; those that are not finite are ignored. With fewer vectors than centres, some centres are
      equal.
    num_centres: K, >= 1.
    num_iterations: Number of iterations, >= 0.
    seed: Seed of the random choices.

  Returns:
    Centres, [K, D], dtype of `vectors`.

  Raises:
    ValueError: There is no finite vector.
  """
  vectors = tf.convert_to_tensor(vectors)
  vectors = tf.boolean_mask(vectors, is_finite(vectors))
  num_vectors = vectors.shape[0]
  if not num_vectors:
    raise ValueError("k-means needs at least one finite vector.")

  def random_vectors(iteration):
    order = tf.random.experimental.stateless_shuffle(tf.range(num_vectors), [seed, iteration])
    return tf.gather(vectors, tf.gather(order, tf.range(num_centres) % num_vectors))

  centres = random_vectors(0)
  for iteration in range(num_iterations):
    centres = _lloyd_step(vectors, centres, random_vectors(iteration + 1))
  return centres
