"""The vector quantiser: the discrete bottleneck of every system here."""

import re

import keras
import tensorflow as tf

from tfvq.layers.codebook_usage import CodebookUsage
from tfvq.layers.replica_losses import keep_replica_losses, layers_of_call
from tfvq.ops import kmeans, nearest_code, quantize
from tfvq.ops.distributed import one_hot_replica, replica_id, sum_over_replicas
from tfvq.ops.quantize import expand_mask
from tfvq.ops.values import check_values

_AUTOMATIC_NAME = re.compile(r"vector_quantizer(_\d+)?")  # that Keras gives, also to a layer that is loaded


@keras.saving.register_keras_serializable("tfvq")
class VectorQuantizer(keras.layers.Layer):
  """Replaces each vector by the nearest of K learned codebook vectors.

  Reference: arXiv 1711.00937, section 3.1-3.2 and eq. 1-3; moving averages: appendix A.1.

  Args:
    num_embeddings: K, number of codes, >= 1.
    embedding_dim: D, size of a vector, >= 1; the last dimension of the input.
    commitment_cost: beta of eq. 3, >= 0; the paper's results hold for 0.1 to 2.
    decay: Decay of the moving averages that make the codebook, in (0, 1); None learns the codebook by the gradient
      of the codebook loss of eq. 3 instead.
    revival_threshold: A code whose moving share of use falls below this fraction of the mean share 1/K is dead, and is
      set to an input vector drawn at random from the batch; 0 leaves dead codes alone. Needs `decay`.
    usage_window: Least number of most recent vectors over which perplexity and use are measured.
    seed: Seed of the initial codebook and of the revivals.
    **kwargs: As for `keras.layers.Layer`. Whatever `dtype`, the quantiser computes and keeps its weights in float32, or
      in float64 if asked to.

  Input shape:
    z_e: Float [..., D], any leading dimensions. `mask`: None, or boolean [...], False at padded positions; it may lack
    the last of these dimensions.

  Output shape:
    z_q: shape and dtype of z_e; its gradient is copied straight through to z_e. A vector that is not finite becomes the
    first codebook vector.

  Training behaviour:
    `call(training=True)` updates the moving averages and the codebook from them, revives dead codes, and adds the
    commitment loss (with `decay=None`, the codebook loss too) by `add_loss`. With `training=False`, or `trainable` set
    to False, nothing moves, and the losses are still reported. Under a `tf.distribute` strategy the statistics are
    those of the global batch. Vectors that are not finite have no part in statistics, revival and losses, and no
    gradient flows to them.

  Metrics:
    `perplexity`, `codebook_usage` and `nonfinite_vectors` of all calls since the last reset, padded positions left out.
    A layer that was given a name puts it in front, as in `top_perplexity`, and so do all quantisers of a model that has
    several.

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
    **kwargs,
  ):
    policy = keras.dtype_policies.get(kwargs.pop("dtype", None) or keras.config.dtype_policy())
    super().__init__(autocast=False, dtype="float64" if policy.variable_dtype == "float64" else "float32", **kwargs)
    if num_embeddings < 1 or embedding_dim < 1:
      raise ValueError(f"num_embeddings and embedding_dim must be at least 1, not {num_embeddings}, {embedding_dim}.")
    if commitment_cost < 0:
      raise ValueError(f"commitment_cost must not be negative, but is {commitment_cost}.")
    if decay is not None and not 0 < decay < 1:
      raise ValueError(f"decay must lie between 0 and 1 or be None, but is {decay}.")
    if not 0 <= revival_threshold < 1:
      raise ValueError(f"revival_threshold must lie in [0, 1), but is {revival_threshold}.")
    self.num_embeddings = num_embeddings
    self.embedding_dim = embedding_dim
    self.commitment_cost = commitment_cost
    self.decay = decay
    self.revival_threshold = revival_threshold
    self.usage_window = usage_window
    self.seed = seed
    self.supports_masking = True
    prefix = f"{self.name}_" if not _AUTOMATIC_NAME.fullmatch(self.name) else ""
    self.usage = CodebookUsage(num_embeddings, usage_window, prefix=prefix)
    # The weights exist from the start: `encode`, `decode` and `adapt` need no call before them.
    self.build((None, embedding_dim))

  def build(self, input_shape):
    del input_shape
    if self.built:
      return
    shape = (self.num_embeddings, self.embedding_dim)
    self._codebook = self.add_weight(
      shape=shape,
      # Vectors of length about 1, near what an untrained encoder puts out.
      initializer=keras.initializers.VarianceScaling(1.0, "fan_out", "uniform", seed=self.seed),
      trainable=self.decay is None,
      aggregation="mean" if self.decay is None else "only_first_replica",
      name="codebook",
    )
    if self.decay is not None:
      # The initial codebook counts as one vector per code.
      self._counts = self._statistic((self.num_embeddings,), "ones", "counts")
      self._sums = self._statistic(shape, "zeros", "sums")
      self._sums.assign(self._codebook)
      self._num_updates = self._statistic((), "zeros", "num_updates", dtype="int32")
    self.built = True

  def _statistic(self, shape, initializer, name, dtype=None):
    """A weight that every replica assigns the same value."""
    return self.add_weight(
      shape=shape,
      dtype=dtype,
      initializer=initializer,
      trainable=False,
      aggregation="only_first_replica",
      name=name,
    )

  @property
  def codebook(self) -> tf.Tensor:
    """The codebook, float [K, D]."""
    return tf.convert_to_tensor(self._codebook)

  def set_codebook(self, values) -> None:
    """Sets the codebook to `values`, float [K, D]; the moving statistics follow, each code weighing one vector."""
    self._codebook.assign(values)
    if self.decay is not None:
      self._counts.assign(tf.ones_like(self._counts))
      self._sums.assign(self._codebook)

  def adapt(self, z_e, num_iterations: int = 10) -> None:
    """Sets the codebook to the k-means centres of data, as Keras preprocessing layers adapt.

    Args:
      z_e: Float [..., D], at least one vector; call it before training, outside any `tf.function`.
      num_iterations: Rounds of Lloyd's algorithm.
    """
    vectors = tf.reshape(tf.cast(z_e, self.variable_dtype), [-1, self.embedding_dim])
    self.set_codebook(kmeans(vectors, self.num_embeddings, num_iterations, self.seed))

  def encode(self, z_e, exact: bool = True) -> tf.Tensor:
    """Codes of z_e, float [..., D] -> int32 [...].

    Args:
      z_e: Float [..., D].
      exact: As for `tfvq.ops.nearest_code`; if True, a vector that is not finite has the code -1.
    """
    return nearest_code(z_e, self.codebook, exact)

  def decode(self, codes) -> tf.Tensor:
    """Codebook vectors of codes, integers [...] in 0..K-1 -> float [..., D].

    Raises:
      ValueError: A code is out of its range. Only an eager call checks this.
    """
    codes = tf.convert_to_tensor(codes)
    check_values(codes, self.num_embeddings, f"Codes of {self.name}")
    return tf.gather(self.codebook, codes)

  def call(self, z_e, training=False, mask=None):
    self._check_dim(z_e.shape)
    if sum(isinstance(layer, VectorQuantizer) for layer in layers_of_call(self)) > 1:
      self.usage.prefix = f"{self.name}_"
    codebook = self.codebook
    z_q, codes, losses = quantize(z_e, codebook, mask)
    mask = expand_mask(mask, codes)
    num_nonfinite = tf.math.count_nonzero(mask & (codes < 0))
    # Padded positions become codes of no class, which segment sums drop.
    codes = tf.reshape(tf.where(mask, codes, -1), [-1])
    counts = tf.math.unsorted_segment_sum(tf.ones_like(codes, codebook.dtype), codes, self.num_embeddings)
    self.usage.update_state(counts, num_nonfinite)
    self._add_latent_loss(self.commitment_cost * losses.commitment)
    if self.decay is None:
      self._add_latent_loss(losses.codebook)
    elif training and self.trainable:
      with keep_replica_losses(self):
        self._update_codebook(tf.stop_gradient(z_e), codes, counts)
    return z_q

  def _add_latent_loss(self, loss):
    # Keras adds up losses of this type, whatever the layer's own is.
    self.add_loss(tf.cast(loss, keras.config.floatx()))

  def _update_codebook(self, z_e, codes, counts):
    """Moves the codebook to the moving averages of the vectors of each code, then revives dead codes.

    Args:
      z_e: Float [..., D].
      codes: Int32 [N], -1 at padded positions and where a vector is not finite.
      counts: Float [K], this replica's uses of each code.
    """
    vectors = tf.reshape(tf.cast(z_e, self.variable_dtype), [-1, self.embedding_dim])
    valid = codes >= 0
    # Zero times NaN would be NaN in the sums and in the reduction of candidates.
    vectors = tf.where(valid[:, tf.newaxis], vectors, 0)
    sums = tf.math.unsorted_segment_sum(vectors, codes, self.num_embeddings)
    sums, counts, num_vectors = sum_over_replicas(sums, counts, one_hot_replica(tf.reduce_sum(counts)))
    counts = self.decay * tf.convert_to_tensor(self._counts) + (1 - self.decay) * counts
    sums = self.decay * tf.convert_to_tensor(self._sums) + (1 - self.decay) * sums
    if self.revival_threshold:
      counts, sums = self._revive(counts, sums, vectors, valid, tf.cast(num_vectors, tf.int32))
    # A code unused for thousands of steps has statistics too small to divide: it stays where it is.
    known = (counts > 1e-20)[:, tf.newaxis]
    codebook = tf.where(known, sums / tf.where(known, counts[:, tf.newaxis], 1), self.codebook)
    self._counts.assign(counts)
    self._sums.assign(sums)
    self._codebook.assign(codebook)

  def _revive(self, counts, sums, vectors, valid, num_vectors):
    """Gives dead codes the statistics of random vectors of the global batch, at the mean weight of a code.

    Args:
      counts: Moving counts, float [K].
      sums: Moving sums, float [K, D].
      vectors: This replica's vectors, float [N, D].
      valid: Boolean [N], False at padded positions and where a vector is not finite.
      num_vectors: Valid vectors of every replica, int32 [num_replicas].

    Returns:
      `(counts, sums)` after the revival, the same on every replica.
    """
    total, offset = tf.reduce_sum(num_vectors), tf.cumsum(num_vectors, exclusive=True)[replica_id()]
    num_updates = tf.convert_to_tensor(self._num_updates)
    self._num_updates.assign_add(1)
    # The same draws on every replica; each contributes those that fall into its part of the batch.
    draws = tf.random.stateless_uniform(
      [self.num_embeddings], [self.seed, num_updates], maxval=tf.maximum(total, 1), dtype=tf.int32
    )
    draws -= offset
    here = (draws >= 0) & (draws < num_vectors[replica_id()])
    index = tf.searchsorted(tf.cumsum(tf.cast(valid, tf.int32)), draws + 1)
    # One vector more, so that there is something to gather in an empty batch.
    vectors = tf.concat([vectors, tf.zeros([1, self.embedding_dim], vectors.dtype)], axis=0)
    candidates = tf.where(here[:, tf.newaxis], tf.gather(vectors, tf.where(here, index, 0)), 0)
    (candidates,) = sum_over_replicas(candidates)
    mean_count = tf.reduce_mean(counts)
    dead = (counts < self.revival_threshold * mean_count) & (total > 0)
    return tf.where(dead, mean_count, counts), tf.where(dead[:, tf.newaxis], mean_count * candidates, sums)

  def _check_dim(self, shape):
    if shape[-1] != self.embedding_dim:
      raise ValueError(
        f"{self.name}: the input's last dimension is {shape[-1]}; embedding_dim is {self.embedding_dim}."
      )

  def compute_output_shape(self, input_shape):
    self._check_dim(input_shape)
    return input_shape

  def get_config(self):
    return {
      **super().get_config(),
      "num_embeddings": self.num_embeddings,
      "embedding_dim": self.embedding_dim,
      "commitment_cost": self.commitment_cost,
      "decay": self.decay,
      "revival_threshold": self.revival_threshold,
      "usage_window": self.usage_window,
      "seed": self.seed,
    }
