"""Distances of vectors to the nearest border between codes."""

import numpy as np

_VECTORS_PER_CHUNK = 1024  # bounds the memory for distances to all codebook vectors


def cell_margin(z_e, codebook) -> np.ndarray:
  """Distance of each vector to the border of its code's Voronoi cell, minus a bound on rounding errors.

  An error with a smaller norm cannot change the code, even if the search compares scores z.e - ||e||^2 / 2 in float32.
  A search that centres the vectors first, or recomputes close distances exactly, has smaller rounding errors.

  Args:
    z_e: Finite vectors, float [..., D].
    codebook: Float [K, D]. Equal vectors count as one code.

  Returns:
    Float64 [...]; negative if rounding alone may change the code, infinite if all codebook vectors are equal.
  """
  # In float64 and centred, rounding errors of the products below are negligible.
  codebook = np.asarray(codebook, np.float64)
  centre = codebook.mean(axis=0)
  centred = codebook - centre
  sizes = np.sum(np.square(centred), axis=-1)
  largest = np.max(np.sum(np.square(codebook), axis=-1))
  identities = np.unique(codebook, axis=0, return_inverse=True)[1].reshape(-1)  # equal for equal vectors
  z_e = np.asarray(z_e)
  vectors = z_e.reshape(-1, codebook.shape[1])
  margins = np.empty(len(vectors))
  for start in range(0, len(vectors), _VECTORS_PER_CHUNK):
    chunk = np.asarray(vectors[start : start + _VECTORS_PER_CHUNK], np.float64)
    distances = sizes - 2 * (chunk - centre) @ centred.T  # squared, minus a term that is the same for every code
    nearest = np.argmin(distances, axis=-1)
    differences = distances - distances.min(axis=-1, keepdims=True)
    rounding = (chunk.shape[1] + 4) * np.finfo(np.float32).eps * (np.sum(np.square(chunk), axis=-1) + largest)
    between = sizes[nearest, np.newaxis] - 2 * centred[nearest] @ centred.T + sizes  # squared
    # An error e changes the difference of two squared distances by at most 2 ||e|| times the distance of the codes.
    reach = 2 * np.sqrt(np.maximum(between, np.finfo(np.float64).tiny))
    is_same = identities[nearest, np.newaxis] == identities
    borders = np.where(is_same, np.inf, (differences - rounding[:, np.newaxis]) / reach)
    margins[start : start + len(chunk)] = borders.min(axis=-1)
  return margins.reshape(z_e.shape[:-1])
