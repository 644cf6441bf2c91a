"""Keeps the losses that layers add separate for each replica of a strategy."""

import contextlib
from collections.abc import Iterator

import keras

from tfvq.ops.distributed import num_replicas


@contextlib.contextmanager
def keep_replica_losses(layer: keras.layers.Layer) -> Iterator[None]:
  """Keeps what this replica has added by `add_loss` while other replicas run inside the block.

  The replicas of a `MirroredStrategy` are threads that run one after another and share each layer's list of losses. A
  reduction over replicas, or an assignment of a mirrored variable, lets the next replica run; its forward pass clears
  the lists and fills them with losses of its own. Without this block, the losses that this replica added before are
  gone, and their gradients with them.

  Args:
    layer: The layer whose `call` contains the block.
  """
  if num_replicas() == 1:
    yield
    return
  kept = [(each, list(each._losses)) for each in layers_of_call(layer)]
  yield
  for each, losses in kept:
    each._losses[:] = losses


def layers_of_call(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
  """The outermost layer that is being called on this thread, and all layers inside it; for use in `layer.call`."""
  return layer._get_call_context().entry_layer._flatten_layers()
