"""The base class of all quantisers."""

import abc
import re

import keras
import numpy as np
import tensorflow as tf

from tfvq.layers.codebook_usage import CodebookUsage
from tfvq.layers.replica_losses import keep_replica_losses, layers_of_call
from tfvq.ops.nearest_code import is_finite
from tfvq.ops.quantize import Quantized, expand_mask
from tfvq.ops.values import check_values


class Quantizer(keras.layers.Layer, abc.ABC):
  """Replaces each vector by one from a finite set, which one or more integer codes identify.

  The codes of z_e [..., D] are int32 [..., *code_shape]. Weights and computations are float64 if `dtype` is, and
  float32 for any other `dtype`. A vector with a NaN or an infinity has the code -1 and is replaced by the vector of
  code 0. It is left out of statistics and losses, and gets no gradient.

  Subclasses implement `_quantize`, `_encode`, `_decode`, `adapt` and `margin`, and `_add_weights` if they have weights.

  Args:
    embedding_dim: D, size of a vector, >= 1; the last dimension of the input.
    num_values: K, number of values of a code; a tuple with a number for each code if the numbers differ.
    code_shape: Shape of the codes of one vector.
    usage_window: Perplexity and codebook usage cover at least this many of the most recent vectors, >= 1.
    **kwargs: As for `keras.layers.Layer`.

  Input shape:
    z_e: Float [..., D], any leading dimensions. `mask`: None, or boolean [...], False at padded positions; it may lack
    the last of these dimensions.

  Output shape:
    z_q: Shape and dtype of z_e.

  Training behaviour:
    `call` adds the losses with `add_loss`. With `trainable` set to False, z_q and the losses are those of
    `training=False`. Under a `tf.distribute` strategy, statistics and losses are those of the global batch.

  Metrics:
    `perplexity`, `codebook_usage` and `nonfinite_vectors` of all calls since the last reset, without padded positions.
    The name of the layer is their prefix, as in `top_perplexity`, if the layer was given a name or if the model has
    several quantisers. A quantiser that is part of another one has no metrics.

  Raises:
    ValueError: An argument is out of its range, or the input's last dimension is not D.
  """

  def __init__(
    self,
    embedding_dim: int,
    num_values: int | tuple[int, ...],
    code_shape: tuple[int, ...] = (),
    usage_window: int = 2**17,
    **kwargs,
  ):
    policy = keras.dtype_policies.get(kwargs.pop("dtype", None) or keras.config.dtype_policy())
    super().__init__(autocast=False, dtype="float64" if policy.variable_dtype == "float64" else "float32", **kwargs)
    self.embedding_dim = embedding_dim
    self.num_values = num_values
    self.code_shape = code_shape
    self.usage_window = usage_window
    self.supports_masking = True
    self._is_part = False
    self._sizes = np.broadcast_to(num_values, code_shape).reshape(-1).tolist()
    prefix = "" if self._has_automatic_name() else f"{self.name}_"
    self.usage = CodebookUsage(self._sizes if code_shape else num_values, usage_window, prefix=prefix)

  def _has_automatic_name(self):
    """Whether the name looks like one that Keras chose; a loaded layer has it in its config."""
    automatic = re.sub("(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
    return re.fullmatch(rf"{automatic}(_\d+)?", self.name)

  @property
  def bits(self) -> float:
    """Bits of a vector's codes."""
    return float(np.sum(np.log2(self._sizes)))

  @property
  def metrics(self):
    """The quantiser's metrics: `usage`, or none in a part of another quantiser."""
    return [] if self._is_part else [self.usage]

  def build(self, input_shape):
    """Adds the weights. Subclasses call it in `__init__`, so that `encode`, `decode` and `adapt` work before `call`."""
    del input_shape
    if not self.built:
      self._add_weights()

  def _add_weights(self):
    """Adds the weights."""

  def _take_parts(self, quantizers):
    """Marks quantisers as parts of this one, which reports the metrics for all of them."""
    for quantizer in quantizers:
      quantizer._is_part = True

  @staticmethod
  def _serialized(quantizers):
    """Configs of parts."""
    return [keras.saving.serialize_keras_object(quantizer) for quantizer in quantizers]

  @staticmethod
  def _deserialized(configs):
    """Parts from their configs."""
    return [keras.saving.deserialize_keras_object(config) for config in configs]

  def _add_statistic(self, shape, initializer, name, dtype=None):
    """Adds a weight that is not trained by gradients and that every replica sets to the same value."""
    return self.add_weight(
      shape=shape,
      dtype=dtype,
      initializer=initializer,
      trainable=False,
      aggregation="only_first_replica",
      name=name,
    )

  def quantize_vectors(self, z_e, mask=None, training=False) -> Quantized:
    """Quantises vectors without updating the metrics; the method `quantize` of Keras layers is another one.

    Args:
      z_e: Float [..., D].
      mask: None, or boolean [...], False at padded positions.
      training: Whether to update what is learned without gradients, such as moving averages.

    Returns:
      A `Quantized`. Its losses already have their weights.
    """
    self._check_dim(z_e.shape)
    z, finite = self._finite_vectors(z_e)
    first = tf.stop_gradient(self._decode(tf.zeros(self.code_shape, tf.int32)))  # before `_quantize` changes it
    z_q, codes, losses = self._quantize(z, finite & expand_mask(mask, finite), training and self.trainable)
    z_q = tf.where(finite[..., tf.newaxis], z_q, first)
    return Quantized(tf.cast(z_q, z_e.dtype), self._without_nonfinite(codes, finite), losses)

  @abc.abstractmethod
  def _quantize(self, z, counted, training) -> Quantized:
    """`quantize_vectors` for finite vectors of the layer's own dtype.

    Args:
      z: Float [..., D].
      counted: Boolean [...], False where a vector is left out of statistics and losses.
      training: As for `quantize_vectors`.
    """

  def encode(self, z_e, exact: bool = True) -> tf.Tensor:
    """Codes of vectors, float [..., D] -> int32 [..., *code_shape].

    Args:
      z_e: Float [..., D].
      exact: As for `tfvq.ops.nearest_code`; if True, a vector that is not finite gets the code -1.
    """
    z_e = tf.convert_to_tensor(z_e)
    if not exact:
      return self._encode(tf.cast(z_e, self.variable_dtype), exact=False)
    z, finite = self._finite_vectors(z_e)
    return self._without_nonfinite(self._encode(z, exact=True), finite)

  @abc.abstractmethod
  def _encode(self, z, exact) -> tf.Tensor:
    """`encode` for finite vectors of the layer's own dtype."""

  def decode(self, codes) -> tf.Tensor:
    """Vectors of codes, integers [..., *code_shape] in 0..K-1 -> float [..., D].

    Raises:
      ValueError: The last dimensions are not `code_shape`, or a code is out of its range. Only an eager call checks the
        range.
    """
    codes = tf.convert_to_tensor(codes)
    self.check_codes(codes)
    return self._decode(tf.cast(codes, tf.int32))

  def check_codes(self, codes) -> None:
    """Raises the errors of `decode`."""
    self._check_code_shape(codes.shape[codes.shape.rank - len(self.code_shape) :])
    if isinstance(self.num_values, int):
      check_values(codes, self.num_values, f"Codes of {self.name}")
    else:
      for position, size in enumerate(self.num_values):
        check_values(codes[..., position], size, f"Codes {position} of {self.name}")

  @abc.abstractmethod
  def _decode(self, codes) -> tf.Tensor:
    """`decode` for int32 codes, without checks."""

  @abc.abstractmethod
  def adapt(self, z_e) -> None:
    """Fits the quantiser to data before training, like `adapt` of Keras preprocessing layers.

    Args:
      z_e: Float [..., D], at least one vector. Must be called outside any `tf.function`.
    """

  @abc.abstractmethod
  def margin(self, z_e) -> np.ndarray:
    """Size of the smallest error that may change a code of a vector, float [..., D] -> float64 [...].

    Args:
      z_e: Finite vectors, float [..., D].

    Returns:
      A lower bound: an error with a smaller norm changes no code of the vector, even if codes are computed in float32.
      Negative if rounding alone may change a code.
    """

  def call(self, z_e, training=False, mask=None):
    with keep_replica_losses(self):
      z_q, codes, losses = self.quantize_vectors(z_e, mask, training)
    self._measure(codes, mask)
    for loss in losses.values():
      # Keras sums the losses of all layers, which must have one dtype.
      self.add_loss(tf.cast(loss, keras.config.floatx()))
    return z_q

  def _measure(self, codes, mask):
    """Updates the metrics with the codes of a batch."""
    if sum(isinstance(layer, Quantizer) and not layer._is_part for layer in layers_of_call(self)) > 1:
      self.usage.prefix = f"{self.name}_"
    num_codes = len(self._sizes)
    codes = tf.reshape(codes, tf.concat([tf.shape(codes)[: codes.shape.rank - len(self.code_shape)], [num_codes]], 0))
    valid = expand_mask(mask, codes[..., 0])
    num_nonfinite = tf.math.count_nonzero(valid & (codes[..., 0] < 0))
    # Each code has its own range of segments. Segment sums drop negative ones: padded positions and missing codes.
    offsets = tf.constant(np.cumsum([0, *self._sizes[:-1]]), codes.dtype)
    codes = tf.reshape(tf.where(valid[..., tf.newaxis] & (codes >= 0), codes + offsets, -1), [-1])
    counts = tf.math.unsorted_segment_sum(tf.ones_like(codes, tf.float32), codes, sum(self._sizes))
    self.usage.update_state(counts, num_nonfinite)

  def _finite_vectors(self, z_e):
    """Casts vectors to the layer's own dtype and replaces those that are not finite by zeros.

    Returns:
      The vectors, float [..., D], and which were finite, boolean [...].
    """
    z = tf.cast(z_e, self.variable_dtype)
    finite = is_finite(z)
    return tf.where(finite[..., tf.newaxis], z, 0), finite

  def _without_nonfinite(self, codes, finite):
    """Codes, with -1 in place of those of vectors that are not finite."""
    return tf.where(finite[(..., *[tf.newaxis] * len(self.code_shape))], codes, -1)

  def _check_dim(self, shape):
    if shape[-1] != self.embedding_dim:
      raise ValueError(
        f"{self.name}: the input's last dimension is {shape[-1]}, but embedding_dim is {self.embedding_dim}."
      )

  def _check_code_shape(self, shape):
    if tuple(shape) != self.code_shape:
      raise ValueError(f"{self.name}: the codes of a vector must have the shape {self.code_shape}, not {tuple(shape)}.")

  def compute_output_shape(self, input_shape):
    self._check_dim(input_shape)
    return input_shape

  def get_config(self):
    return {**super().get_config(), "usage_window": self.usage_window}
