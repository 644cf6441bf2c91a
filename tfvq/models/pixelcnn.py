"""The gated PixelCNN: a prior over image codes, or a model of images."""

from typing import NamedTuple

import keras
import tensorflow as tf

from tfvq.layers.categorical_head import CategoricalHead
from tfvq.layers.gated_block import GatedBlock
from tfvq.models.autoregressive import AutoregressiveModel, Condition


class PixelCNNState(NamedTuple):
  """The state of generation between two pixels."""

  row: tf.Tensor  # number of rows begun, int scalar
  column: tf.Tensor  # number of pixels done in the current row, int scalar
  vertical_past: tuple[tf.Tensor, ...]  # per layer [B, reach, W, C]
  horizontal_past: tuple[tf.Tensor, ...]  # per layer [B, reach * C]
  from_vertical: tf.Tensor  # [W, layers, B, 2C], the vertical stack's contribution to the current row


@keras.saving.register_keras_serializable("tfvq")
class PixelCNN(AutoregressiveModel):
  """Autoregressive model of a grid of K-way values in raster order, with cached activations in generation.

  Reference: arXiv 1606.05328; as the prior over codes: arXiv 1711.00937, section 3.3.
  Deviation: masks are replaced by a shift of the input and by kernels without the masked weights; skip connections of
  all layers are projected at once; only the output head orders the values of a position; the vertical stack has a
  position embedding.

  Args:
    num_values: K, number of values, >= 2.
    grid_shape: (H, W), or (H, W, G) for G values per position, such as the colours of a pixel.
    filters: C, channels of both stacks, >= 1.
    num_layers: Number of gated layers, >= 1.
    kernel_size: Width of the kernels before masking, odd. Each layer extends the receptive field by `kernel_size // 2`
      pixels.
    hidden_units: Units of the output head's hidden layer, >= 1.
    ordinal: Whether neighbouring values have similar meanings, like those of 8-bit pixels. If so, the network gets them
      as numbers in addition to their embedding.
    dropout: Fraction of the skip connections' units that is dropped in training, in [0, 1).
    num_classes: Number of classes that the model is conditioned on, by the condition "label", integers [B] in
      0..num_classes-1; 0 for none.
    condition_dim: E, channels of a map that the model is conditioned on, by the condition "local", float [B, H, W, E];
      its height or width may be 1, which means the same values for all rows or columns. 0 for none. If there are
      classes too, their embedding is added to the map.
    **kwargs: As for `keras.Model`.

  Input shape:
    x: integers [B, H, W] or [B, H, W, G]; or a pair (x, condition), see `AutoregressiveModel`.

  Output shape:
    Logits, float [B, H, W, G, K]; G is 1 for a grid (H, W).

  Training behaviour:
    As for `AutoregressiveModel`.

  Raises:
    ValueError: An argument is out of its range, or a condition has other names or shapes.

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
    self.grid_shape = tuple(grid_shape)
    self.height, self.width = grid_shape[:2]
    self.filters = filters
    self.num_layers = num_layers
    self.kernel_size = kernel_size
    self.hidden_units = hidden_units
    self.ordinal = ordinal
    self.dropout_rate = dropout
    self.num_classes = num_classes
    self.condition_dim = condition_dim
    policy = self.dtype_policy
    num_variables = grid_shape[2] if len(grid_shape) == 3 else 1
    # One table for all variables of a position: variable g uses rows g K .. (g + 1) K - 1.
    self.embedding = keras.layers.Embedding(num_variables * num_values, 2 * filters, dtype=policy, name="embedding")
    self.ordinal_projection = (
      keras.layers.Dense(2 * filters, dtype=policy, name="ordinal_projection") if ordinal else None
    )
    self.blocks = [
      GatedBlock(filters, kernel_size, last=layer == num_layers - 1, dtype=policy, name=f"block_{layer}")
      for layer in range(num_layers)
    ]
    self.dropout = keras.layers.Dropout(dropout, dtype=policy)
    self.head = CategoricalHead(num_values, num_variables, hidden_units, dtype=policy, name="head")
    self._map_dim = condition_dim or (filters if num_classes else 0)  # channels of the map for the layers
    self.class_embedding = (
      keras.layers.Embedding(num_classes, self._map_dim, dtype=policy, name="class_embedding") if num_classes else None
    )
    self.build()

  @property
  def value_shape(self):
    return self.grid_shape

  @property
  def num_position_axes(self):
    return 2

  @property
  def conditions(self):
    label = {"label": Condition((), self.num_classes)} if self.num_classes else {}
    local = {"local": Condition((self.height, self.width, self.condition_dim))} if self.condition_dim else {}
    return {**label, **local}

  def build(self, input_shape=None):
    del input_shape
    stack_shape = (None, self.height, self.width, self.filters)
    self.embedding.build()
    if self.ordinal:
      self.ordinal_projection.build((None, self.head.num_variables))
    if self.num_classes:
      self.class_embedding.build()
    condition_shape = (None, None, None, self._map_dim) if self._map_dim else None
    for block in self.blocks:
      block.build((stack_shape, stack_shape, condition_shape))
    self.head.build((None, self.num_layers * self.filters))
    self.position_embedding = self.add_weight(
      shape=(self.height, self.width, self.filters), initializer="zeros", name="position_embedding"
    )
    self.built = True

  def features(self, x, condition=None, training=False):
    vertical, horizontal = tf.split(self._embed(x), 2, axis=-1)
    # After this shift by one row or one column, layers may use the input at their own position.
    vertical = tf.pad(vertical[:, :-1], [[0, 0], [1, 0], [0, 0], [0, 0]]) + self._positions()
    horizontal = tf.pad(horizontal[:, :, :-1], [[0, 0], [0, 0], [1, 0], [0, 0]])
    condition_map, skips = self._condition_map(condition), []
    for block in self.blocks:
      vertical, horizontal, skip = block((vertical, horizontal, condition_map))
      skips.append(skip)
    return self.dropout(tf.concat(skips, axis=-1), training=training)

  def project_condition(self, condition=None) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """Projects a condition to the pre-activations of all layers; zeros if there is none.

    Returns:
      For each layer a tensor for the vertical and one for the horizontal stack, float [B or 1, H or 1, W or 1, 2C].
    """
    condition_map = self._condition_map(condition)
    return [block.project_condition(condition_map) for block in self.blocks]

  def initial_state(self, batch_size: int) -> PixelCNNState:
    """The state before the first row, zeros."""
    pasts = [block.initial_past(batch_size, self.width) for block in self.blocks]
    return PixelCNNState(
      row=tf.constant(0),
      column=tf.constant(0),
      vertical_past=tuple(past.vertical for past in pasts),
      horizontal_past=tuple(past.horizontal for past in pasts),
      from_vertical=tf.zeros([self.width, self.num_layers, batch_size, 2 * self.filters], self.compute_dtype),
    )

  def row(self, x_above, state: PixelCNNState, projected) -> PixelCNNState:
    """Begins a row: runs the vertical stack once for the whole row.

    Args:
      x_above: The values of the row above, integers [B, W, G]; ignored in the first row.
      state: The state after the last pixel of the row above.
      projected: Result of `project_condition`.

    Returns:
      The state before the row's first pixel.
    """
    vertical = self._embed(x_above)[:, tf.newaxis, :, : self.filters]
    vertical = tf.where(state.row > 0, vertical, tf.zeros_like(vertical)) + self._positions()[state.row]
    vertical_past, from_vertical = [], []
    for block, past, (for_vertical, for_horizontal) in zip(self.blocks, state.vertical_past, projected, strict=True):
      vertical, to_horizontal, past = block.row(
        vertical, past, _row_of(for_vertical, state.row), _row_of(for_horizontal, state.row)
      )
      vertical_past.append(past)
      from_vertical.append(to_horizontal[:, 0])
    return PixelCNNState(
      row=state.row + 1,
      column=tf.zeros_like(state.column),
      vertical_past=tuple(vertical_past),
      horizontal_past=tuple(tf.zeros_like(past) for past in state.horizontal_past),
      from_vertical=tf.transpose(tf.stack(from_vertical), [2, 0, 1, 3]),
    )

  def step(self, x_before, state: PixelCNNState, projected=None) -> tuple[tf.Tensor, PixelCNNState]:
    """Runs the horizontal stack for the next pixel of the row that `row` began.

    Args:
      x_before: The values of the pixel to the left, integers [B, G]; ignored in the first column.
      state: The state before this pixel.
      projected: Ignored, because `row` has already added it.

    Returns:
      `(features [B, L C], state after this pixel)`.
    """
    del projected
    horizontal = self._embed(x_before)[:, self.filters :]
    horizontal = tf.where(state.column > 0, horizontal, tf.zeros_like(horizontal))
    from_vertical = tf.unstack(tf.gather(state.from_vertical, state.column))
    skips, horizontal_past = [], []
    for block, past, to_horizontal in zip(self.blocks, state.horizontal_past, from_vertical, strict=True):
      horizontal, skip, past = block.step(horizontal, past, to_horizontal)
      skips.append(skip)
      horizontal_past.append(past)
    state = state._replace(column=state.column + 1, horizontal_past=tuple(horizontal_past))
    return tf.concat(skips, axis=-1), state

  def get_config(self):
    return {
      **super().get_config(),
      "num_values": self.head.num_values,
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

  def _embed(self, x):
    """Integers [..., G] -> float [..., 2C]: the sum of the values' embeddings."""
    rows = x + self.head.num_values * tf.range(self.head.num_variables)
    embedded = tf.reduce_sum(self.embedding(rows), axis=-2)
    if self.ordinal:
      embedded += self.ordinal_projection(tf.cast(x, self.compute_dtype) * (2 / (self.head.num_values - 1)) - 1)
    return embedded

  def _positions(self):
    """The position embedding, [H, W, C], in the compute dtype; Keras casts weights in `call` only."""
    return tf.cast(tf.convert_to_tensor(self.position_embedding), self.compute_dtype)

  def _condition_map(self, condition):
    """Combines label and local condition to one map, float [B, H or 1, W or 1, E], or None if there are none."""
    condition = self.checked_condition(condition)
    maps = [tf.cast(condition["local"], self.compute_dtype)] if self.condition_dim else []
    if self.num_classes:
      maps.append(self.class_embedding(condition["label"])[:, tf.newaxis, tf.newaxis])
    return sum(maps) if maps else None


def _row_of(projected, row):
  """Row `row` of a projected condition, [B, H or 1, W, 2C] -> [B, 1, W, 2C]."""
  return projected if projected.shape[1] == 1 else tf.gather(projected, [row], axis=1)
