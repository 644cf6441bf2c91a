"""The gated PixelCNN: the prior over image codes, and an image model by itself."""

from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tfvq.layers.categorical_head import CategoricalHead
from tfvq.layers.gated_block import GatedBlock
from tfvq.models.likelihood_model import LikelihoodModel
from tfvq.ops.empty_batch import for_any_batch
from tfvq.ops.values import check_values, outside


class PixelCNNState(NamedTuple):
  """What generation carries from pixel to pixel."""

  vertical_past: tuple[tf.Tensor, ...]  # per layer [B, reach, W, C]
  horizontal_past: tuple[tf.Tensor, ...]  # per layer [B, reach * C]
  from_vertical: tf.Tensor  # [W, layers, B, 2C]: what the vertical stack says of the current row
  for_vertical: tuple  # per layer, the condition's share [B or 1, H or 1, W or 1, 2C]
  for_horizontal: tuple  # the same for the horizontal stack


@keras.saving.register_keras_serializable("tfvq")
class PixelCNN(LikelihoodModel):
  """Autoregressive model over a grid of K-way values in raster order, with cached generation.

  Reference: arXiv 1606.05328; as the prior over codes: arXiv 1711.00937, section 3.3.
  Deviation: masks are replaced by a shift of the input and by kernels without their masked part; skip connections of
  all layers are projected at once; values sharing a position are ordered in the output head only; the vertical stack
  is told where in the grid it is.

  Args:
    num_values: K, number of values, 0..K-1.
    grid_shape: (H, W), or (H, W, G) for G values per position, such as the colours of a pixel.
    filters: C, channels of both stacks.
    num_layers: Gated layers, >= 1.
    kernel_size: Odd width of the uncut kernels; a layer reaches `kernel_size // 2` pixels further.
    hidden_units: Units of the output head's hidden layer.
    ordinal: Whether neighbouring values mean similar things, as 8-bit pixels do; they then enter as numbers beside
      their embedding.
    dropout: Share of the skip connections' units dropped in training.
    num_classes: Conditions on a class, int [B] in 0..num_classes-1; 0 for none.
    condition_dim: E: conditions on a vector, float [B, E], or a map, float [B, H, W, E]; 0 for none.
    **kwargs: As for `keras.Model`.

  Input shape:
    x: integers [B, H, W] or [B, H, W, G]; or a pair (x, condition).

  Output shape:
    Logits, float [B, H, W, K] or [B, H, W, G, K].

  Training behaviour:
    `compile(optimizer)` and `fit` minimise the negative log-likelihood in nats per value; the metric `bits_per_dim` is
    the same in bits.

  Raises:
    ValueError: An argument is out of its range.

  Example:
    >>> prior = PixelCNN(num_values=512, grid_shape=(21, 21), filters=16, num_layers=2)
    >>> codes = tf.zeros([2, 21, 21], tf.int32)
    >>> prior.log_prob(codes).shape
    TensorShape([2])
  """

  def __init__(
    self,
    num_values: int,
    grid_shape: tuple[int, ...],
    filters: int = 64,
    num_layers: int = 10,
    kernel_size: int = 3,
    hidden_units: int = 256,
    ordinal: bool = False,
    dropout: float = 0.0,
    num_classes: int = 0,
    condition_dim: int = 0,
    **kwargs,
  ):
    super().__init__(**kwargs)
    if len(grid_shape) not in (2, 3) or min(grid_shape) < 1:
      raise ValueError(f"grid_shape must be (H, W) or (H, W, G), all positive, but is {tuple(grid_shape)}.")
    if num_layers < 1 or filters < 1:
      raise ValueError(f"num_layers and filters must be at least 1, not {num_layers}, {filters}.")
    if num_classes and condition_dim:
      raise ValueError("Give num_classes or condition_dim, not both.")
    self.num_values = num_values
    self.grid_shape = tuple(grid_shape)
    self.height, self.width = grid_shape[:2]
    self.num_variables = grid_shape[2] if len(grid_shape) == 3 else 1
    self.filters = filters
    self.num_layers = num_layers
    self.kernel_size = kernel_size
    self.hidden_units = hidden_units
    self.ordinal = ordinal
    self.dropout_rate = dropout
    self.num_classes = num_classes
    self.condition_dim = condition_dim
    policy = self.dtype_policy
    # One table for all variables of a position: variable g uses rows g K .. (g + 1) K - 1.
    self.embedding = keras.layers.Embedding(self.num_variables * num_values, 2 * filters, dtype=policy)
    self.ordinal_projection = keras.layers.Dense(2 * filters, dtype=policy) if ordinal else None
    self.blocks = [
      GatedBlock(filters, kernel_size, last=layer == num_layers - 1, dtype=policy) for layer in range(num_layers)
    ]
    self.dropout = keras.layers.Dropout(dropout, dtype=policy)
    self.head = CategoricalHead(num_values, self.num_variables, hidden_units, dtype=policy)
    self.class_embedding = keras.layers.Embedding(num_classes, filters, dtype=policy) if num_classes else None
    self._bits_per_dim = keras.metrics.Mean(name="bits_per_dim")
    self.build()

  def build(self, input_shape=None):
    del input_shape
    stack_shape = (None, self.height, self.width, self.filters)
    self.embedding.build()
    if self.ordinal:
      self.ordinal_projection.build((None, self.num_variables))
    if self.num_classes:
      self.class_embedding.build()
    condition_dim = self.filters if self.num_classes else self.condition_dim
    condition_shape = (None, 1, 1, condition_dim) if condition_dim else None
    for block in self.blocks:
      block.build((stack_shape, stack_shape, condition_shape))
    self.head.build((None, self.num_layers * self.filters))
    self.position_embedding = self.add_weight(
      shape=(self.height, self.width, self.filters), initializer="zeros", name="position_embedding"
    )
    self.built = True

  def call(self, inputs, training=False):
    x, condition = self._unpack(inputs)
    logits = for_any_batch(lambda x, condition: self.head(self.features(x, condition, training), x), x, condition)
    return logits if len(self.grid_shape) == 3 else logits[..., 0, :]

  def log_prob(self, x, condition=None) -> tf.Tensor:
    """Log-likelihood in nats, integers [B, H, W] or [B, H, W, G] -> float [B]."""
    x, condition = self._unpack((x, condition))
    check_values(x, self.num_values, f"Values of {self.name}")
    if self.num_classes and condition is not None:
      check_values(tf.convert_to_tensor(condition), self.num_classes, f"Classes of {self.name}")
    logits = self.head(self.features(x, condition), x)
    return tf.reduce_sum(self.head.log_prob(logits, x), axis=[1, 2])

  def features(self, x, condition=None, training=False):
    """What the network says of each position given those before it, integers [B, H, W, G] -> float [B, H, W, L C]."""
    vertical, horizontal = tf.split(self._embed(x), 2, axis=-1)
    # From here on a position may look at itself: the input has moved on by one row, or one column.
    vertical = tf.pad(vertical[:, :-1], [[0, 0], [1, 0], [0, 0], [0, 0]]) + self._positions()
    horizontal = tf.pad(horizontal[:, :, :-1], [[0, 0], [0, 0], [1, 0], [0, 0]])
    condition = self._condition_map(condition)
    skips = []
    for block in self.blocks:
      vertical, horizontal, skip = block((vertical, horizontal, condition))
      skips.append(skip)
    return self.dropout(tf.concat(skips, axis=-1), training=training)

  def initial_state(self, batch_size: int, condition=None) -> PixelCNNState:
    """The state before the first pixel; `condition` as for `log_prob`."""
    condition = self._condition_map(condition)
    pasts = [block.initial_past(batch_size, self.width) for block in self.blocks]
    shares = [block.project_condition(condition) for block in self.blocks]
    return PixelCNNState(
      vertical_past=tuple(past.vertical for past in pasts),
      horizontal_past=tuple(past.horizontal for past in pasts),
      from_vertical=tf.zeros([self.width, self.num_layers, batch_size, 2 * self.filters], self.compute_dtype),
      for_vertical=tuple(vertical for vertical, _ in shares),
      for_horizontal=tuple(horizontal for _, horizontal in shares),
    )

  def row(self, x_above, state: PixelCNNState, row) -> PixelCNNState:
    """Begins a row: runs the vertical stack once for the whole of it.

    Args:
      x_above: The row above, integers [B, W, G]; not looked at in the first row.
      state: The state after the last pixel of the row above.
      row: Index of the row that begins, int scalar.

    Returns:
      The state before the row's first pixel.
    """
    vertical = self._embed(x_above)[:, tf.newaxis, :, : self.filters]
    vertical = tf.where(row > 0, vertical, tf.zeros_like(vertical)) + self._positions()[row]
    vertical_past, from_vertical = [], []
    for block, past, for_vertical, for_horizontal in zip(
      self.blocks, state.vertical_past, state.for_vertical, state.for_horizontal, strict=True
    ):
      vertical, to_horizontal, past = block.row(
        vertical, past, _row_of(for_vertical, row), _row_of(for_horizontal, row)
      )
      vertical_past.append(past)
      from_vertical.append(to_horizontal[:, 0])
    return state._replace(
      vertical_past=tuple(vertical_past),
      horizontal_past=tuple(tf.zeros_like(past) for past in state.horizontal_past),
      from_vertical=tf.transpose(tf.stack(from_vertical), [2, 0, 1, 3]),
    )

  def step(self, x_left, state: PixelCNNState, column) -> tuple[tf.Tensor, PixelCNNState]:
    """Runs the horizontal stack for one pixel of the row that `row` began.

    Args:
      x_left: The pixel to the left, integers [B, G]; not looked at in the first column.
      state: The state before this pixel.
      column: Index of the pixel in its row, int scalar.

    Returns:
      `(features [B, L C], state after this pixel)`; `head` turns the features into a distribution.
    """
    horizontal = self._embed(x_left)[:, self.filters :]
    horizontal = tf.where(column > 0, horizontal, tf.zeros_like(horizontal))
    from_vertical = tf.unstack(tf.gather(state.from_vertical, column))
    skips, horizontal_past = [], []
    for block, past, to_horizontal in zip(self.blocks, state.horizontal_past, from_vertical, strict=True):
      horizontal, skip, past = block.step(horizontal, past, to_horizontal)
      skips.append(skip)
      horizontal_past.append(past)
    return tf.concat(skips, axis=-1), state._replace(horizontal_past=tuple(horizontal_past))

  def example_losses(self, x, y_pred, training):
    """Negative log-likelihood of each example in nats per value, float [B]."""
    del training
    x, _ = self._unpack(x)
    logits = y_pred if len(self.grid_shape) == 3 else y_pred[..., tf.newaxis, :]
    nll_nats = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=x, logits=logits)
    nll_nats = tf.reduce_mean(nll_nats, axis=[1, 2, 3])
    self._bits_per_dim.update_state(nll_nats / np.log(2))
    return nll_nats

  def is_flagged(self, x):
    x, condition = self._unpack(x)
    flagged = outside(x, self.num_values)
    return flagged | outside(condition, self.num_classes) if self.num_classes else flagged

  def check_flagged(self, share):
    if share:
      classes = f", or a class outside 0..{self.num_classes - 1}" if self.num_classes else ""
      raise ValueError(
        f"{share:.1%} of the examples for {self.name} have a value outside 0..{self.num_values - 1}{classes}."
      )

  def input_signature(self):
    x = keras.InputSpec(shape=(None, *self.grid_shape), dtype="int32")
    if self.num_classes:
      return [(x, keras.InputSpec(shape=(None,), dtype="int32"))]
    return [(x, keras.InputSpec(shape=(None, self.condition_dim), dtype="float32"))] if self.condition_dim else [x]

  def get_config(self):
    return {
      **super().get_config(),
      "num_values": self.num_values,
      "grid_shape": self.grid_shape,
      "filters": self.filters,
      "num_layers": self.num_layers,
      "kernel_size": self.kernel_size,
      "hidden_units": self.hidden_units,
      "ordinal": self.ordinal,
      "dropout": self.dropout_rate,
      "num_classes": self.num_classes,
      "condition_dim": self.condition_dim,
    }

  def _unpack(self, inputs):
    """X as int32 [B, H, W, G], and the condition or None."""
    x, condition = inputs if isinstance(inputs, (tuple, list)) else (inputs, None)
    x = tf.cast(x, tf.int32)
    return (x if len(self.grid_shape) == 3 else x[..., tf.newaxis]), condition

  def _embed(self, x):
    """Integers [..., G] -> float [..., 2C]: the sum of the values' embeddings."""
    rows = x + self.num_values * tf.range(self.num_variables)
    embedded = tf.reduce_sum(self.embedding(rows), axis=-2)
    if self.ordinal:
      embedded += self.ordinal_projection(tf.cast(x, self.compute_dtype) * (2 / (self.num_values - 1)) - 1)
    return embedded

  def _positions(self):
    """The position embedding in the compute dtype, which Keras sees to in `call` only, [H, W, C]."""
    return tf.cast(tf.convert_to_tensor(self.position_embedding), self.compute_dtype)

  def _condition_map(self, condition):
    """The condition as float [B, 1 or H, 1 or W, E], or None."""
    conditional = self.num_classes or self.condition_dim
    if bool(conditional) != (condition is not None):
      raise ValueError(f"{self.name} needs {'a' if conditional else 'no'} condition.")
    if condition is None:
      return None
    if self.num_classes:
      condition = self.class_embedding(condition)
    condition = tf.cast(condition, self.compute_dtype)
    return condition if condition.shape.rank == 4 else condition[:, tf.newaxis, tf.newaxis]


def _row_of(share, row):
  """Row `row` of a condition's share, [B, H or 1, W, 2C] -> [B, 1, W, 2C]."""
  return share if share.shape[1] == 1 else tf.gather(share, [row], axis=1)
