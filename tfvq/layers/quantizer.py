"""The interface of all quantisers, and what they share."""

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
  """Replaces each vector by one of finitely many, which a code identifies.

  A vector has one code or several: the codes of z_e [..., D] are int32 [..., *code_shape]. Whatever `dtype`, a
  quantiser computes and keeps its weights in float32, or in float64 if asked to. Vectors that are not finite have the
  code -1 and become the vector of code 0. They have no part in statistics and losses, and no gradient flows to them.

  Subclasses supply `_quantize`, `_encode`, `_decode`, `adapt` and `margin`, and `_add_weights` if they have any.

  Args:
    embedding_dim: D, size of a vector, >= 1; the last dimension of the input.
    num_values: K, number of values of a code; a tuple with one for each code where they differ.
    code_shape: Shape of the codes of one vector.
    usage_window: Least number of most recent vectors over which perplexity and use are measured, >= 1.
    **kwargs: As for `keras.layers.Layer`.

  Input shape:
    z_e: Float [..., D], any leading dimensions. `mask`: None, or boolean [...], False at padded positions; it may lack
    the last of these dimensions.

  Output shape:
    z_q: Shape and dtype of z_e.

  Training behaviour:
    `call` adds the losses by `add_loss`. With `trainable` set to False, z_q and the losses are those of
    `training=False`. Under a `tf.distribute` strategy, statistics and losses are those of the global batch.

  Metrics:
    `perplexity`, `codebook_usage` and `nonfinite_vectors` of all calls since the last reset, padded positions left out.
    A layer that was given a name puts it in front, as in `top_perplexity`, and so do all quantisers of a model that has
    several. A quantiser that is part of another has no metrics.

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
    """Whether Keras chose the name, as it may have for a layer that is loaded."""
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
    """Adds the weights. Subclasses build themselves: `encode`, `decode` and `adapt` need no call before them."""
    del input_shape
    if not self.built:
      self._add_weights()

  def _add_weights(self):
    """Adds the weights."""

  def _take_parts(self, quantizers):
    """Makes quantisers parts of this one, which reports the metrics of all of them."""
    for quantizer in quantizers:
      quantizer._is_part = True

  @staticmethod
  def _serialized(quantizers):
    """Serialises parts for a config."""
    return [keras.saving.serialize_keras_object(quantizer) for quantizer in quantizers]

  @staticmethod
  def _deserialized(configs):
    """Deserialises the parts of a config."""
    return [keras.saving.deserialize_keras_object(config) for config in configs]

  def _add_statistic(self, shape, initializer, name, dtype=None):
    """Adds a weight without a gradient, to which every replica assigns the same value."""
    return self.add_weight(
      shape=shape,
      dtype=dtype,
      initializer=initializer,
      trainable=False,
      aggregation="only_first_replica",
      name=name,
    )

  def quantize_vectors(self, z_e, mask=None, training=False) -> Quantized:
    """Quantises vectors, without metrics; `quantize` would be a method of Keras that lowers a model's precision.

    Args:
      z_e: Float [..., D].
      mask: None, or boolean [...], False at padded positions.
      training: Whether the quantiser learns from the vectors what it learns without gradients.

    Returns:
      A `Quantized`. Its losses are as they are added to the model's.
    """
    self._check_dim(z_e.shape)
    z, finite = self._finite_vectors(z_e)
    first = tf.stop_gradient(self._decode(tf.zeros(self.code_shape, tf.int32)))  # before `_quantize` changes it
    z_q, codes, losses = self._quantize(z, finite & expand_mask(mask, finite), training and self.trainable)
    z_q = tf.where(finite[..., tf.newaxis], z_q, first)
    return Quantized(tf.cast(z_q, z_e.dtype), self._without_nonfinite(codes, finite), losses)

  @abc.abstractmethod
  def _quantize(self, z, counted, training) -> Quantized:
    """As `quantize_vectors`, for finite vectors of the layer's own dtype; `counted` [...] marks those that count."""

  def encode(self, z_e, exact: bool = True) -> tf.Tensor:
    """Codes of vectors, float [..., D] -> int32 [..., *code_shape].

    Args:
      z_e: Float [..., D].
      exact: As for `tfvq.ops.nearest_code`; if True, a vector that is not finite has the code -1.
    """
    z_e = tf.convert_to_tensor(z_e)
    if not exact:
      return self._encode(tf.cast(z_e, self.variable_dtype), exact=False)
    z, finite = self._finite_vectors(z_e)
    return self._without_nonfinite(self._encode(z, exact=True), finite)

  @abc.abstractmethod
  def _encode(self, z, exact) -> tf.Tensor:
    """As `encode`: of finite vectors of the layer's own dtype."""

  def decode(self, codes) -> tf.Tensor:
    """Vectors of codes, integers [..., *code_shape] in 0..K-1 -> float [..., D].

    Raises:
      ValueError: The shape is not that of codes, or a code is out of its range. Only an eager call checks the range.
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
    """As `decode`: of int32 codes, without checks."""

  @abc.abstractmethod
  def adapt(self, z_e) -> None:
    """Fits the quantiser to data, as Keras preprocessing layers adapt.

    Args:
      z_e: Float [..., D], at least one vector; call it before training, outside any `tf.function`.
    """

  @abc.abstractmethod
  def margin(self, z_e) -> np.ndarray:
    """How far vectors are from changing a code, float [..., D] -> float64 [...].

    Args:
      z_e: Finite vectors, float [..., D].

    Returns:
      A bound: an error of a smaller norm changes no code of the vector, even if codes are computed in float32. Negative
      where rounding alone may change one.
    """

  def call(self, z_e, training=False, mask=None):
    with keep_replica_losses(self):
      z_q, codes, losses = self.quantize_vectors(z_e, mask, training)
    self._measure(codes, mask)
    for loss in losses.values():
      # Keras adds up losses of this type, whatever the layer's own is.
      self.add_loss(tf.cast(loss, keras.config.floatx()))
    return z_q

  def _measure(self, codes, mask):
    """Counts the codes of a batch in the metrics."""
    if sum(isinstance(layer, Quantizer) and not layer._is_part for layer in layers_of_call(self)) > 1:
      self.usage.prefix = f"{self.name}_"
    num_codes = len(self._sizes)
    codes = tf.reshape(codes, tf.concat([tf.shape(codes)[: codes.shape.rank - len(self.code_shape)], [num_codes]], 0))
    valid = expand_mask(mask, codes[..., 0])
    num_nonfinite = tf.math.count_nonzero(valid & (codes[..., 0] < 0))
    # Padded positions become values of no code, which segment sums drop.
    offsets = tf.constant(np.cumsum([0, *self._sizes[:-1]]), codes.dtype)
    codes = tf.reshape(tf.where(valid[..., tf.newaxis] & (codes >= 0), codes + offsets, -1), [-1])
    counts = tf.math.unsorted_segment_sum(tf.ones_like(codes, tf.float32), codes, sum(self._sizes))
    self.usage.update_state(counts, num_nonfinite)

  def _finite_vectors(self, z_e):
    """The vectors in the layer's own dtype, zeros in place of those that are not finite, and which are finite."""
    z = tf.cast(z_e, self.variable_dtype)
    finite = is_finite(z)
    return tf.where(finite[..., tf.newaxis], z, 0), finite

  def _without_nonfinite(self, codes, finite):
    """Codes with -1 for the vectors that are not finite."""
    return tf.where(finite[(..., *[tf.newaxis] * len(self.code_shape))], codes, -1)

  def _check_dim(self, shape):
    if shape[-1] != self.embedding_dim:
      raise ValueError(
        f"{self.name}: the input's last dimension is {shape[-1]}; embedding_dim is {self.embedding_dim}."
      )

  def _check_code_shape(self, shape):
    if tuple(shape) != self.code_shape:
      raise ValueError(f"{self.name}: the codes of a vector have the shape {self.code_shape}, not {tuple(shape)}.")

  def compute_output_shape(self, input_shape):
    self._check_dim(input_shape)
    return input_shape

  def get_config(self):
    return {**super().get_config(), "usage_window": self.usage_window}
