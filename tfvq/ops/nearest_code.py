"""The look-up of the nearest codebook vector, in bounded memory."""

import functools

import tensorflow as tf

# Size of one float32 table of scores, and its codes. Some tables fit the last-level cache of a server core complex
# together, and they bound the memory of a look-up in a codebook of any size.
_TABLE_BYTES = 16 * 2**20
_TABLE_CODES = 2048

# The best code is found in its group first: a maximum within groups is several times as fast as one argmax.
_GROUP = 32


def nearest_code(z_e: tf.Tensor, codebook: tf.Tensor) -> tf.Tensor:
  """Returns the index of the codebook vector nearest to each vector, k = argmin_j ||z_e - e_j||.

  Works in tables of some thousand vectors times some thousand codes, so that the extra memory stays below 100 MiB
  whatever their numbers.

  Reference: arXiv 1711.00937, eq. 1-2.

  Args:
    z_e: Float vectors, [..., D]; any leading dimensions, unknown or zero ones included.
    codebook: Float codebook, [K, D], K >= 1.

  Returns:
    Codes, int32 [...], in 0..K-1; of equally near codes the lowest. Distances are computed in float32, or in float64
    if either argument is float64.
  """
  z_e, codebook = tf.convert_to_tensor(z_e), tf.convert_to_tensor(codebook)
  dtype = tf.float64 if tf.float64 in (z_e.dtype, codebook.dtype) else tf.float32
  codebook = tf.cast(codebook, dtype)
  num_codes, dim = codebook.shape
  leading_shape = tf.shape(z_e)[:-1]
  vectors = tf.reshape(tf.cast(z_e, dtype), [-1, dim])

  tables = _score_tables(codebook)
  rows = _TABLE_BYTES // (dtype.size * tables.shape[-1])
  search = functools.partial(_search, tables=tables)
  if vectors.shape[0] is not None and vectors.shape[0] <= rows:
    codes = search(vectors)
  else:
    num_vectors = tf.shape(vectors)[0]
    padding = -num_vectors % rows
    chunks = tf.reshape(tf.pad(vectors, [[0, padding], [0, 0]]), [-1, rows, dim])
    # Two at a time in a graph: one is multiplied while another is searched.
    iterations = 1 if tf.executing_eagerly() else 2
    spec = tf.TensorSpec([rows], tf.int32)
    codes = tf.map_fn(search, chunks, fn_output_signature=spec, parallel_iterations=iterations)
    codes = tf.reshape(codes, [-1])[:num_vectors]
  codes = tf.reshape(codes, leading_shape)
  codes.set_shape(z_e.shape[:-1])
  return codes


def _score_tables(codebook):
  """Matrices that turn vectors into scores, [K, D] -> [tables, D + 1, codes of a table].

  argmin ||z - e||^2 = argmax z.e - ||e||^2 / 2, since ||z||^2 is the same for every code. The second term meets a one
  at the end of z. Codes that fill up the last table score too little to be chosen.
  """
  num_codes, dim = codebook.shape
  scores = tf.concat([codebook, -0.5 * tf.reduce_sum(tf.square(codebook), axis=-1, keepdims=True)], axis=-1)
  table_codes = min(_TABLE_CODES, -(-num_codes // _GROUP) * _GROUP)
  num_missing = -num_codes % table_codes
  # The lowest float32 itself would become -inf among the bfloat16 parts of `split_matmul`.
  lowest = tf.constant(codebook.dtype.min / 2, codebook.dtype)
  filling = tf.concat([tf.zeros([num_missing, dim], codebook.dtype), tf.fill([num_missing, 1], lowest)], axis=-1)
  scores = tf.reshape(tf.concat([scores, filling], axis=0), [-1, table_codes, dim + 1])
  return tf.transpose(scores, [0, 2, 1])


def _search(vectors, tables):
  """Index of the highest score over all tables, [N, D] -> int32 [N]."""
  num_tables, _, table_codes = tables.shape
  vectors = tf.concat([vectors, tf.ones_like(vectors[:, :1])], axis=-1)

  def search_table(table):
    scores = tf.reshape(_exact_matmul(vectors, tables[table]), [-1, table_codes // _GROUP, _GROUP])
    group_scores = tf.reduce_max(scores, axis=-1)
    group = tf.argmax(group_scores, axis=-1, output_type=tf.int32)
    best_group = tf.gather(scores, group, axis=1, batch_dims=1)
    return group * _GROUP + tf.argmax(best_group, axis=-1, output_type=tf.int32), tf.reduce_max(group_scores, axis=-1)

  def better_of(table, codes, best_scores):
    table_best, table_scores = search_table(table)
    better = table_scores > best_scores
    codes = tf.where(better, table_best + table * table_codes, codes)
    return table + 1, codes, tf.where(better, table_scores, best_scores)

  first = search_table(0)
  if num_tables == 1:
    return first[0]
  return tf.while_loop(lambda table, *_: table < num_tables, better_of, (1, *first), parallel_iterations=1)[1]


def _exact_matmul(a, b):
  """`a @ b` to float32 accuracy, also where the hardware multiplies float32 with fewer bits (TF32, bfloat16)."""
  if a.dtype != tf.float32 or not (tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("TPU")):
    return tf.matmul(a, b)
  return split_matmul(a, b)


def split_matmul(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
  """float32 `a @ b` from products of bfloat16-representable parts, [M, D] x [D, N] -> [M, N].

  Each factor is the exact sum of three parts of 8 significant bits, whose products are exact in TF32 and bfloat16
  units with float32 accumulation; the three smallest of the nine products lie below float32's resolution.
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
