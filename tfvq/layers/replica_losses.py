"""Separates the losses that layers add on different replicas of a strategy."""

import contextlib
from collections.abc import Iterator

import keras

from tfvq.ops.distributed import num_replicas


@contextlib.contextmanager
def keep_replica_losses(layer: keras.layers.Layer) -> Iterator[None]:
  """Restores the losses that this replica added with `add_loss`, after other replicas have run inside the block.

  The replicas of a `MirroredStrategy` are threads that run in turn and share each layer's list of losses. A reduction
  over replicas, or an assignment to a mirrored variable, lets the next replica run. Its forward pass clears the lists
  and adds its own losses. Without this block, this replica's losses would be lost, and their gradients with them.

  Args:
    layer: The layer whose `call` contains the block.
  """
  if num_replicas() == 1:
    yield
    return
  saved = [(each, list(each._losses)) for each in layers_of_call(layer)]
  yield
  for each, losses in saved:
    each._losses[:] = losses


def layers_of_call(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
  """The outermost layer being called on this thread, and all layers inside it; for use in `layer.call`."""
  return layer._get_call_context().entry_layer._flatten_layers()
