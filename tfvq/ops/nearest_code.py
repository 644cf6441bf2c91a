"""The search for the nearest codebook vector, exact and in bounded memory."""

import functools
from typing import NamedTuple

import tensorflow as tf

# Size of a table of float32 scores, and its number of codes. Several tables fit into the last-level cache of a server
# CPU. Their size bounds the memory that a search takes, whatever the size of the codebook.
_TABLE_BYTES = 8 * 2**20
_TABLE_CODES = 2048

# The search finds the best group of codes first: maxima of groups are several times as fast as one argmax.
_GROUP = 32

# Close calls are settled in batches, by exact distances to the codes with the best scores: at most this many vectors
# and scores in a batch (but at least one vector), and this many codes for each vector.
_SETTLE_ROWS = 64
_SETTLE_SCORES = 2**20
_CANDIDATES = 64


def nearest_code(z_e: tf.Tensor, codebook: tf.Tensor, exact: bool = True) -> tf.Tensor:
  """Returns the index of the codebook vector nearest to each vector, k = argmin_j ||z_e - e_j||.

  Scores are computed by matrix products, in tables of about a thousand vectors by about two thousand codes, so that the
  search takes less than 100 MiB of memory for any number of vectors and codes. Vectors and codebook are centred first.
  If the scores of two codes differ by less than the rounding error, their exact distances decide.

  Reference: arXiv 1711.00937, eq. 1-2.

  Args:
    z_e: Vectors, float [..., D], with any leading dimensions, which may be unknown or zero.
    codebook: Float [K, D], K >= 1. A codebook vector that is not finite is never the nearest.
    exact: Whether to settle close calls and to mark vectors that are not finite. Graphs for devices set it to False:
      either of two equally near codes may be the result, and the code of a vector that is not finite is arbitrary.

  Returns:
    Codes, int32 [...] in 0..K-1, the lowest one if several are equally near; -1 for a vector that is not finite. They
    are computed in float32, or in float64 if either argument is float64.
  """
  z_e, codebook = tf.convert_to_tensor(z_e), tf.convert_to_tensor(codebook)
  dtype = tf.float64 if tf.float64 in (z_e.dtype, codebook.dtype) else tf.float32
  codebook = tf.cast(codebook, dtype)
  dim = codebook.shape[1]
  leading_shape = tf.shape(z_e)[:-1]
  vectors = tf.reshape(tf.cast(z_e, dtype), [-1, dim])

  tables = _Tables(codebook)
  search = functools.partial(_search, tables=tables, exact=exact)
  rows = _TABLE_BYTES // (dtype.size * tables.table_codes)
  num_vectors = vectors.shape[0]
  if num_vectors is not None and num_vectors <= rows:
    found = search(vectors)
  else:
    num_vectors = tf.shape(vectors)[0]
    padding = (rows - num_vectors % rows) % rows  # not -num_vectors % rows: ONNX rounds it otherwise
    # The padding is NaN because close calls of vectors that are not finite are not settled.
    vectors = tf.pad(vectors, [[0, padding], [0, 0]], constant_values=float("nan"))
    chunks = tf.reshape(vectors, [-1, rows, dim])
    # Two at a time in a graph: the product of one chunk overlaps with the search of another.
    iterations = 1 if tf.executing_eagerly() else 2
    spec = _Found(*(tf.TensorSpec([rows], kind) for kind in (tf.int32, tf.bool, tf.bool)))
    found = tf.map_fn(search, chunks, fn_output_signature=spec, parallel_iterations=iterations)
    found = _Found(*(tf.reshape(values, [-1]) for values in found))
  codes = _settle(vectors, tables, found) if exact else found.codes
  codes = tf.reshape(codes[:num_vectors], leading_shape)
  codes.set_shape(z_e.shape[:-1])
  return codes


def is_finite(vectors: tf.Tensor) -> tf.Tensor:
  """Whether vectors are finite, with finite squared distances to each other, float [..., D] -> bool [...]."""
  # (|a| + |b|)^2 <= max holds if both squares are at most max / 4. The other half is for rounding.
  return tf.reduce_sum(tf.square(vectors), axis=-1) <= vectors.dtype.max / 8


class _Tables:
  """A codebook as matrices whose products with vectors are scores; the nearest code has the highest score.

  argmin ||z - e||^2 = argmax z.e - ||e||^2 / 2, since ||z||^2 is the same for every code. The second term is multiplied
  by a one that is appended to z.

  Attributes:
    codebook: The codebook, padded with zeros to whole tables, [num_tables * table_codes, D].
    centre: A robust mean of the codebook, [D], which is subtracted from vectors and codes. Without this, scores would
      lose precision far from zero.
    scores: The matrices, [num_tables, D + 1, table_codes].
    longest: Norm of the longest centred codebook vector.
    lowest: Score of codes that are never chosen: those that are not finite, and the padding of the last table.
  """

  def __init__(self, codebook):
    num_codes, dim = codebook.shape
    finite = is_finite(codebook)[:, tf.newaxis]
    codebook = tf.where(finite, codebook, 0)
    self.centre = _centre(codebook, tf.cast(finite, codebook.dtype))
    # The lowest float32 itself would round to -inf in the bfloat16 parts of `split_matmul`.
    self.lowest = tf.constant(codebook.dtype.min / 2, codebook.dtype)
    self.table_codes = min(_TABLE_CODES, -(-num_codes // _GROUP) * _GROUP)
    num_missing = -num_codes % self.table_codes
    self.num_tables = (num_codes + num_missing) // self.table_codes

    centred = tf.where(finite, codebook - self.centre, 0)
    squares = tf.reduce_sum(tf.square(centred), axis=-1, keepdims=True)
    self.longest = tf.sqrt(tf.reduce_max(squares))
    biases = tf.where(finite, -0.5 * squares, self.lowest)
    biases = tf.pad(biases, [[0, num_missing], [0, 0]], constant_values=self.lowest)
    self.codebook, centred = (tf.pad(rows, [[0, num_missing], [0, 0]]) for rows in (codebook, centred))
    scores = tf.reshape(tf.concat([centred, biases], axis=-1), [-1, self.table_codes, dim + 1])
    self.scores = tf.transpose(scores, [0, 2, 1])


def _centre(codebook, weights):
  """A mean of the codes that is robust to outliers, [K, D] with weights [K, 1] -> [D]."""
  mean = tf.reduce_sum(weights * codebook, axis=0) / tf.maximum(tf.reduce_sum(weights), 1)
  squares = tf.reduce_sum(tf.square(codebook - mean), axis=-1, keepdims=True)
  weights = weights * tf.reduce_mean(squares) / (squares + 1e-6 * tf.reduce_mean(squares) + 1e-30)
  return mean + tf.math.divide_no_nan(tf.reduce_sum(weights * (codebook - mean), axis=0), tf.reduce_sum(weights))


class _Found(NamedTuple):
  """Results of a search for N vectors, [N] each."""

  codes: tf.Tensor  # int32, the code with the best score
  is_close: tf.Tensor  # bool, whether rounding may have changed the code
  finite: tf.Tensor  # bool


def _search(vectors, tables, exact):
  """Finds the codes with the best scores over all tables, [N, D] -> `_Found`; flags close calls only if `exact`."""
  centred = vectors - tables.centre
  extended = _with_one(centred)
  squares = tf.reduce_sum(tf.square(centred), axis=-1)
  norms = tf.sqrt(squares)

  def tolerance_of(scores):
    """Twice the rounding error of a score, given the best score of each vector, [N] -> [N]."""
    distances = tf.sqrt(tf.maximum(squares - 2 * scores, 0))
    # Only codes about as near as the best one are relevant. The triangle inequality bounds their norms.
    longest = tf.minimum(2 * (norms + distances), tables.longest)
    # The error grows like the square root of the number of terms.
    return 4 * _epsilon(vectors.dtype) * (vectors.shape[1] + 1) ** 0.5 * longest * (norms + longest / 2)

  def search_table(table, codes, best, is_close):
    """Updates the codes, their scores and the flags of close calls [N] with one more table."""
    scores = _exact_matmul(extended, tables.scores[table])
    groups = tf.reshape(scores, [-1, tables.table_codes // _GROUP, _GROUP])
    group_scores = tf.reduce_max(groups, axis=-1)
    group = tf.argmax(group_scores, axis=-1, output_type=tf.int32)
    best_group = tf.gather(groups, group, axis=1, batch_dims=1)
    table_codes = group * _GROUP + tf.argmax(best_group, axis=-1, output_type=tf.int32) + table * tables.table_codes
    table_best = tf.reduce_max(group_scores, axis=-1)
    new_best = tf.maximum(table_best, best)
    codes = tf.where(table_best > best, table_codes, codes)
    if exact:
      threshold = new_best - tolerance_of(new_best)
      was_near = best >= threshold
      # A code without rivals counts twice here, in its group and as a group, or once, as the best code so far.
      num_near = sum(
        tf.reduce_sum(tf.cast(found >= threshold[:, tf.newaxis], tf.int32), axis=-1)
        for found in (best_group, group_scores)
      )
      is_close = (was_near & is_close) | (num_near + tf.cast(was_near, tf.int32) > 2)
    return table + 1, codes, new_best, is_close

  lowest = tf.fill(tf.shape(vectors)[:1], tables.lowest)
  begin = (0, tf.zeros_like(lowest, tf.int32), lowest, tf.zeros_like(lowest, tf.bool))
  if tables.num_tables == 1:
    _, codes, _, is_close = search_table(*begin)
  else:
    _, codes, _, is_close = tf.while_loop(
      lambda table, *_: table < tables.num_tables, search_table, begin, parallel_iterations=1
    )
  return _Found(codes, is_close, squares <= vectors.dtype.max)


def _with_one(vectors):
  return tf.concat([vectors, tf.ones_like(vectors[:, :1])], axis=-1)


def _settle(vectors, tables, found):
  """Settles close calls by exact distances, and marks vectors that are not finite with -1.

  Args:
    vectors: Float [N, D].
    tables: The codebook.
    found: Results of the search.

  Returns:
    Codes, int32 [N].
  """
  is_close = tf.cast(found.is_close & found.finite, tf.int32)
  num_codes = tables.num_tables * tables.table_codes
  num_rows = max(min(_SETTLE_ROWS, _SETTLE_SCORES // num_codes), 1)
  if vectors.shape[0] is not None:
    num_rows = min(num_rows, vectors.shape[0])
  num_candidates = min(_CANDIDATES, num_codes)

  def settle_rows(codes, is_close):
    # The first vectors with a close call. If there are fewer of them than rows, the other rows are not changed.
    is_open, rows = tf.math.top_k(is_close, num_rows)
    chosen_vectors = tf.gather(vectors, rows)
    scores = _exact_matmul(_with_one(chosen_vectors - tables.centre), tables.scores)
    scores = tf.reshape(tf.transpose(scores, [1, 0, 2]), [num_rows, num_codes])
    candidate_scores, candidates = tf.math.top_k(scores, num_candidates)
    differences = tf.gather(tables.codebook, candidates) - chosen_vectors[:, tf.newaxis]
    distances = tf.reduce_sum(tf.square(differences), axis=-1)
    distances = tf.where(candidate_scores > tables.lowest / 2, distances, vectors.dtype.max)
    is_nearest = distances == tf.reduce_min(distances, axis=-1, keepdims=True)
    nearest = tf.reduce_min(tf.where(is_nearest, candidates, tf.int32.max), axis=-1)
    # By additions, because TensorFlow Lite cannot assign single elements.
    change = lambda values: tf.scatter_nd(rows[:, tf.newaxis], values, tf.shape(codes))
    return codes + change(is_open * (nearest - tf.gather(codes, rows))), is_close - change(is_open)

  codes, _ = tf.while_loop(lambda codes, is_close: tf.reduce_max(is_close) > 0, settle_rows, (found.codes, is_close))
  return tf.where(found.finite, codes, -1)


def _epsilon(dtype):
  return 2.0**-23 if dtype == tf.float32 else 2.0**-52


def _exact_matmul(a, b):
  """`a @ b` with float32 accuracy, even if the hardware multiplies float32 with fewer bits (TF32, bfloat16)."""
  if a.dtype != tf.float32 or not (tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU")):
    return tf.matmul(a, b)
  return split_matmul(a, b)


def split_matmul(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
  """float32 `a @ b` from products of bfloat16-representable parts, [M, D] x [D, N] -> [M, N].

  Each factor is the exact sum of three parts with 8 significant bits. Products of parts are exact on TF32 and bfloat16
  hardware with float32 accumulation. The three smallest of the nine products are below the resolution of float32.
  """
  a0, a1, a2 = _bfloat16_parts(a)
  b0, b1, b2 = _bfloat16_parts(b)
  small = tf.matmul(a0, b2) + tf.matmul(a1, b1) + tf.matmul(a2, b0)
  return small + (tf.matmul(a0, b1) + tf.matmul(a1, b0)) + tf.matmul(a0, b0)


def _bfloat16_parts(x):
  parts = []
  for _ in range(3):
    part = tf.cast(tf.cast(x, tf.bfloat16), x.dtype)
    parts.append(part)
    x = x - part
  return parts
