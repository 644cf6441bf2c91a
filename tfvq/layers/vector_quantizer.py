"""The vector quantiser of the VQ-VAE."""

import keras
import tensorflow as tf

from tfvq.layers.codebook_quantizer import CodebookQuantizer
from tfvq.ops import cell_margin, nearest_code
from tfvq.ops.distributed import one_hot_replica, replica_id, sum_over_replicas
from tfvq.ops.quantize import GRADIENTS, Quantized, latent_losses, unit_length, with_gradient

_METRICS = ("euclidean", "cosine")


@keras.saving.register_keras_serializable("tfvq")
class VectorQuantizer(CodebookQuantizer):
  """Replaces each vector by the nearest of K learned codebook vectors.

  Reference: arXiv 1711.00937, sections 3.1 and 3.2, eq. 1-3; moving averages: appendix A.1. The cosine metric: arXiv
  2110.04627. The rotation gradient: arXiv 2410.06424, section 4. Revival: arXiv 2107.03312, section III.C.

  Args:
    num_embeddings: K, number of codes, >= 1.
    embedding_dim: D, size of a vector, >= 1; the last dimension of the input.
    commitment_cost: beta of eq. 3, >= 0; the paper's results hold for 0.1 to 2.
    decay: Decay of the moving averages that the codebook follows, in (0, 1); None trains the codebook by the gradient
      of the codebook loss of eq. 3 instead.
    revival_threshold: A code is dead if its moving usage count is below this fraction of the mean count. It is then
      set to a random input vector of the batch. In [0, 1); 0 turns revival off. No effect if `decay` is None.
    usage_window: Perplexity and codebook usage cover at least this many of the most recent vectors, >= 1.
    seed: Seed of the initial codebook and of the revivals.
    metric: "euclidean"; or "cosine", which divides vectors and codebook vectors by their norms, so that z_q has norm 1.
    gradient: How the gradient reaches z_e: "straight_through" or "rotation", see `tfvq.ops.quantize.with_gradient`.
    **kwargs: As for `Quantizer`.

  Input shape:
    z_e: Float [..., D], any leading dimensions. `mask`: None, or boolean [...], False at padded positions; it may lack
    the last of these dimensions.

  Output shape:
    z_q: Shape and dtype of z_e. A vector that is not finite is replaced by the first codebook vector.

  Training behaviour:
    `call(training=True)` updates the moving averages and with them the codebook, revives dead codes, and adds the
    commitment loss with `add_loss`; with `decay=None` the codebook loss too. With `training=False`, or `trainable` set
    to False, nothing is updated, but the losses are still added. Under a `tf.distribute` strategy the statistics are
    those of the global batch. Vectors that are not finite are left out of statistics, revival and losses, and get no
    gradient.

  Metrics:
    As for `Quantizer`.

  Raises:
    ValueError: An argument is out of its range, or the input's last dimension is not D.

  Example:
    >>> quantizer = VectorQuantizer(num_embeddings=512, embedding_dim=64)
    >>> z_e = tf.random.normal([8, 21, 21, 64])
    >>> quantizer.encode(z_e).shape
    TensorShape([8, 21, 21])
    >>> quantizer(z_e).shape
    TensorShape([8, 21, 21, 64])
  """

  def __init__(
    self,
    num_embeddings: int,
    embedding_dim: int,
    commitment_cost: float = 0.25,
    decay: float | None = 0.99,
    revival_threshold: float = 0.03,
    usage_window: int = 2**17,
    seed: int = 0,
    metric: str = "euclidean",
    gradient: str = "straight_through",
    **kwargs,
  ):
    super().__init__(num_embeddings, embedding_dim, seed=seed, usage_window=usage_window, **kwargs)
    if commitment_cost < 0:
      raise ValueError(f"commitment_cost must not be negative, but is {commitment_cost}.")
    if decay is not None and not 0 < decay < 1:
      raise ValueError(f"decay must lie between 0 and 1 or be None, but is {decay}.")
    if not 0 <= revival_threshold < 1:
      raise ValueError(f"revival_threshold must lie in [0, 1), but is {revival_threshold}.")
    check_choice("metric", metric, _METRICS)
    check_choice("gradient", gradient, GRADIENTS)
    self.commitment_cost = commitment_cost
    self.decay = decay
    self.revival_threshold = revival_threshold
    self.metric = metric
    self.gradient = gradient
    self.build((None, embedding_dim))

  @property
  def codebook_is_trainable(self):
    """Whether the codebook is learned by gradients."""
    return self.decay is None

  def _add_weights(self):
    super()._add_weights()
    if self.decay is not None:
      # The initial codebook counts as one vector per code.
      self._counts = self._add_statistic((self.num_embeddings,), "ones", "counts")
      self._sums = self._add_statistic(self._codebook.shape, "zeros", "sums")
      self._sums.assign(self._codebook)
      self._num_updates = self._add_statistic((), "zeros", "num_updates", dtype="int32")

  @property
  def codebook(self) -> tf.Tensor:
    """The codebook, float [K, D]; with the cosine metric, its vectors have norm 1."""
    return self._scaled(super().codebook)

  def set_codebook(self, values) -> None:
    """Sets the codebook to `values`, float [K, D], and the moving averages as if each code had been used once."""
    super().set_codebook(values)
    if self.decay is not None:
      self._counts.assign(tf.ones_like(self._counts))
      self._sums.assign(self._codebook)

  def adapt(self, z_e, num_iterations: int = 10) -> None:
    super().adapt(self._scaled(tf.cast(z_e, self.variable_dtype)), num_iterations)

  def margin(self, z_e):
    if self.metric == "euclidean":
      return super().margin(z_e)
    # The borders between codes of norm 1 pass through the origin, so a vector's distance to them scales with its norm.
    z = tf.cast(z_e, tf.float64)
    return tf.norm(z, axis=-1).numpy() * cell_margin(unit_length(z), self.codebook)

  def _scaled(self, vectors):
    """Vectors as the metric compares them: divided by their norms if it is the cosine."""
    return unit_length(vectors) if self.metric == "cosine" else vectors

  def _encode(self, z, exact):
    return super()._encode(self._scaled(z), exact)

  def _quantize(self, z, counted, training):
    # As `tfvq.ops.quantize`, for vectors that are known to be finite.
    z, codebook = self._scaled(z), self.codebook
    codes = nearest_code(tf.stop_gradient(z), tf.stop_gradient(codebook))
    e = tf.gather(codebook, codes)
    losses = latent_losses(z, e, counted)
    weighted = {"commitment": self.commitment_cost * losses["commitment"]}
    if self.decay is None:
      weighted["codebook"] = losses["codebook"]
    elif training:
      self._update_codebook(tf.stop_gradient(z), tf.where(counted, codes, -1))
    return Quantized(with_gradient(z, e, self.gradient), codes, weighted)

  def _update_codebook(self, z, codes):
    """Moves the codebook to the moving averages of the vectors of each code, then revives dead codes.

    Args:
      z: Finite vectors, float [..., D].
      codes: Int32 [...], -1 where a vector does not count.
    """
    vectors, codes = tf.reshape(z, [-1, self.embedding_dim]), tf.reshape(codes, [-1])
    counts = tf.math.unsorted_segment_sum(tf.ones_like(codes, z.dtype), codes, self.num_embeddings)
    sums = tf.math.unsorted_segment_sum(vectors, codes, self.num_embeddings)
    sums, counts, num_vectors = sum_over_replicas(sums, counts, one_hot_replica(tf.reduce_sum(counts)))
    counts = self.decay * tf.convert_to_tensor(self._counts) + (1 - self.decay) * counts
    sums = self.decay * tf.convert_to_tensor(self._sums) + (1 - self.decay) * sums
    if self.revival_threshold:
      counts, sums = self._revive(counts, sums, vectors, codes >= 0, tf.cast(num_vectors, tf.int32))
    # The averages of a code that was not used for thousands of steps are too small to divide: it keeps its vector.
    has_count = (counts > 1e-20)[:, tf.newaxis]
    codebook = tf.where(has_count, sums / tf.where(has_count, counts[:, tf.newaxis], 1), self.codebook)
    self._counts.assign(counts)
    self._sums.assign(sums)
    self._codebook.assign(codebook)

  def _revive(self, counts, sums, vectors, valid, num_vectors):
    """Resets the averages of dead codes to random vectors of the global batch, with the mean count of all codes.

    Args:
      counts: Moving counts, float [K].
      sums: Moving sums, float [K, D].
      vectors: This replica's vectors, float [N, D].
      valid: Boolean [N], False where a vector does not count.
      num_vectors: Number of valid vectors on each replica, int32 [num_replicas].

    Returns:
      `(counts, sums)` after the revival, the same on every replica.
    """
    total, offset = tf.reduce_sum(num_vectors), tf.cumsum(num_vectors, exclusive=True)[replica_id()]
    num_updates = tf.convert_to_tensor(self._num_updates)
    self._num_updates.assign_add(1)
    # Every replica draws the same indices into the global batch, and contributes the vectors of its own part.
    draws = tf.random.stateless_uniform(
      [self.num_embeddings], [self.seed, num_updates], maxval=tf.maximum(total, 1), dtype=tf.int32
    )
    draws -= offset
    here = (draws >= 0) & (draws < num_vectors[replica_id()])
    index = tf.searchsorted(tf.cumsum(tf.cast(valid, tf.int32)), draws + 1)
    # The extra vector is gathered for an empty batch.
    vectors = tf.concat([vectors, tf.zeros([1, self.embedding_dim], vectors.dtype)], axis=0)
    candidates = tf.where(here[:, tf.newaxis], tf.gather(vectors, tf.where(here, index, 0)), 0)
    (candidates,) = sum_over_replicas(candidates)
    mean_count = tf.reduce_mean(counts)
    dead = (counts < self.revival_threshold * mean_count) & (total > 0)
    return tf.where(dead, mean_count, counts), tf.where(dead[:, tf.newaxis], mean_count * candidates, sums)

  def get_config(self):
    return {
      **super().get_config(),
      "commitment_cost": self.commitment_cost,
      "decay": self.decay,
      "revival_threshold": self.revival_threshold,
      "metric": self.metric,
      "gradient": self.gradient,
    }


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
  """Checks that an argument is one of the choices.

  Raises:
    ValueError: The value is not among the choices.
  """
  if value not in choices:
    raise ValueError(f"{name} must be {' or '.join(choices)}, not {value!r}.")
