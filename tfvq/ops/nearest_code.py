"""The look-up of the nearest codebook vector, in bounded memory."""

import tensorflow as tf

# Size of one chunk's float32 score table. It fits the last-level cache of a server core complex, and bounds the
# memory of a look-up in a codebook of any size.
_CHUNK_BYTES = 16 * 2**20


def nearest_code(z_e: tf.Tensor, codebook: tf.Tensor) -> tf.Tensor:
  """Returns the index of the codebook vector nearest to each vector, k = argmin_j ||z_e - e_j||.

  Works through `z_e` in chunks, so that the extra memory stays near 16 MiB whatever the number of vectors and codes.

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

  # argmin ||z - e||^2 = argmax z.e - ||e||^2 / 2: the term ||z||^2 is the same for every code.
  transposed = tf.transpose(codebook)
  offset = -0.5 * tf.reduce_sum(tf.square(codebook), axis=-1)

  def search(chunk):
    return tf.argmax(tf.nn.bias_add(_exact_matmul(chunk, transposed), offset), axis=-1, output_type=tf.int32)

  rows = max(1, _CHUNK_BYTES // (dtype.size * num_codes))
  if vectors.shape[0] is not None and vectors.shape[0] <= rows:
    codes = search(vectors)
  else:
    num_vectors = tf.shape(vectors)[0]
    padding = -num_vectors % rows
    chunks = tf.reshape(tf.pad(vectors, [[0, padding], [0, 0]]), [-1, rows, dim])
    codes = tf.map_fn(search, chunks, fn_output_signature=tf.TensorSpec([rows], tf.int32), parallel_iterations=1)
    codes = tf.reshape(codes, [-1])[:num_vectors]
  codes = tf.reshape(codes, leading_shape)
  codes.set_shape(z_e.shape[:-1])
  return codes


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
