"""Pruning of WaveNets: masks for the weights that are kept, and removal of pruned layers and channels.

Reference: arXiv 1802.08435 (pruning of blocks of weights in recurrent vocoders).
"""

import functools
from collections.abc import Callable

import keras
import numpy as np

from tfvq.models.wavenet import WaveNet

Mask = tuple[keras.Variable, np.ndarray]
Importance = Callable[[keras.Variable], np.ndarray]  # variable -> importance of each weight, >= 0; 0 if it is 0


def magnitude(variable: keras.Variable) -> np.ndarray:
  """Magnitude of weights, the importance if gradients are not known."""
  return np.abs(np.array(variable))


def masks_of(method: str, block_size: int) -> Callable[..., list[Mask]]:
  """The function that computes the masks of a method, "blocks", "channels" or "layers"."""
  if method == "blocks":
    return functools.partial(block_masks, block_size=block_size)
  return {"channels": channel_masks, "layers": layer_masks}[method]


def block_masks(
  wavenet: WaveNet, sparsity: float, importance: Importance = magnitude, *, block_size: int
) -> list[Mask]:
  """Masks that keep the most important blocks, ranked over all kernels together.

  Args:
    wavenet: The network.
    sparsity: Fraction of the blocks to prune, rounded down to whole blocks.
    importance: Importance of the weights; that of a block is the norm of its weights' importances.
    block_size: Number of consecutive inputs of one output that form a block, >= 1.

  Returns:
    Kernels with their masks of zeros and ones, of the same shape.
  """
  kernels = _kernels(wavenet)
  norms = [_block_norms(importance(kernel), block_size) for kernel in kernels]
  every = np.concatenate([found.ravel() for found in norms])
  kept = np.split(_mask_of_lowest(every, int(sparsity * every.size)), np.cumsum([found.size for found in norms])[:-1])
  return [
    (kernel, np.repeat(mask.reshape(found.shape), block_size, axis=0)[: kernel.shape[0]])
    for kernel, found, mask in zip(kernels, norms, kept, strict=True)
  ]


def has_zero_blocks(wavenet: WaveNet, block_size: int, least: float = 0.0) -> bool:
  """Whether at least half of all kernels' weights are zero, and all zeros are in blocks as `block_masks` makes them.

  Args:
    wavenet: The network.
    block_size: As for `block_masks`. The result is False if it does not divide the number of inputs of every kernel.
    least: Minimum fraction of zeros in each kernel.
  """
  num_zeros, num_weights = 0, 0
  for kernel in _kernels(wavenet):
    kernel = np.array(kernel)
    if len(kernel) % block_size:
      return False
    in_blocks = np.repeat(_block_norms(kernel, block_size) == 0, block_size, axis=0)
    if np.any((kernel == 0) & ~in_blocks) or in_blocks.mean() < least:
      return False
    num_zeros += np.count_nonzero(in_blocks)
    num_weights += kernel.size
  return num_zeros >= num_weights / 2


def channel_masks(wavenet: WaveNet, sparsity: float, importance: Importance = magnitude) -> list[Mask]:
  """Masks that keep the most important channels of the residual stream, and as many gates in each layer.

  Arguments and result are as for `block_masks`.
  """
  num_dead = min(wavenet.channels - 1, int(sparsity * wavenet.channels))
  stream = _mask_of_lowest(_stream_norms(wavenet, importance), num_dead)
  gates = [_mask_of_lowest(norms, num_dead) for norms in _gate_norms(wavenet, importance)]
  masks = [(variable, stream) for variable in wavenet.embedding.variables]
  for block, gate in zip(wavenet.blocks, gates, strict=True):
    if not block.last:
      masks += [(block.residual.kernel, gate[:, np.newaxis] * stream), (block.residual.bias, stream)]
  return [*masks, (wavenet.head.hidden.kernel, np.concatenate(gates)[:, np.newaxis])]


def layer_masks(wavenet: WaveNet, sparsity: float, importance: Importance = magnitude) -> list[Mask]:
  """Masks that keep the layers with the most important weights into later layers and the head.

  Arguments and result are as for `block_masks`.
  """
  norms = np.array([np.linalg.norm(norms) for norms in _gate_norms(wavenet, importance)])
  kept = _mask_of_lowest(norms, min(len(norms) - 1, int(sparsity * len(norms))))
  masks = [
    (variable, keep)
    for block, keep in zip(wavenet.blocks, kept, strict=True)
    if not block.last
    for variable in block.residual.variables
  ]
  return [*masks, (wavenet.head.hidden.kernel, np.repeat(kept, wavenet.channels)[:, np.newaxis])]


def remove_pruned(wavenet: WaveNet) -> WaveNet:
  """Copies a network without the layers and channels whose output weights are all zero; its output is the same."""
  channels = wavenet.channels
  gate_norms = _gate_norms(wavenet)
  layers = [layer for layer, norms in enumerate(gate_norms) if norms.any()] or [0]
  stream_norms = _stream_norms(wavenet)
  size = max(1, *(int(np.count_nonzero(norms)) for norms in (stream_norms, *(gate_norms[layer] for layer in layers))))
  stream = _highest(stream_norms, size)
  gates = {layer: _highest(gate_norms[layer], size) for layer in layers}
  head = type(wavenet.head).from_config(wavenet.head.get_config())
  config = {**wavenet.get_config(), "channels": size, "dilation_rates": [wavenet.dilation_rates[i] for i in layers]}
  small = WaveNet(**{**config, "head": head, "audio_values": wavenet.audio_values})
  for target, source in zip(small.embedding.variables, wavenet.embedding.variables, strict=True):
    target.assign(np.array(source)[..., stream])
  pre_activations = []
  for target, layer in zip(small.blocks, layers, strict=True):
    source, both = wavenet.blocks[layer], np.concatenate([gates[layer], channels + gates[layer]])
    rows = np.concatenate([stream, channels + stream])
    target.conv.kernel.assign(np.array(source.conv.kernel)[np.ix_(rows, both)])
    target.conv.bias.assign(np.array(source.conv.bias)[both])
    if not target.last:
      target.residual.kernel.assign(np.array(source.residual.kernel)[np.ix_(gates[layer], stream)])
      target.residual.bias.assign(np.array(source.residual.bias)[stream])
    pre_activations.append(2 * channels * layer + both)
  for target, source in (
    (small.local_projection, wavenet.local_projection),
    (small.speaker_embedding, wavenet.speaker_embedding),
  ):
    if source is not None:
      (weights,) = source.variables
      target.variables[0].assign(np.array(weights)[:, np.concatenate(pre_activations)])
  for target, source in zip(small.head.variables, wavenet.head.variables, strict=True):
    if source is wavenet.head.hidden.kernel:
      rows = np.concatenate([channels * layer + gates[layer] for layer in layers])
      target.assign(np.array(source)[rows])
    else:
      target.assign(source)
  return small


def _kernels(wavenet):
  """The kernels of all matrix products whose inputs are not one-hot."""
  layers = [
    layer for block in wavenet.blocks for layer in ((block.conv,) if block.last else (block.conv, block.residual))
  ]
  return [layer.kernel for layer in (*layers, wavenet.head.hidden, *wavenet.head.outputs)]


def _block_norms(kernel, block_size):
  """Norms of the blocks, [ceil(inputs / block_size), outputs]; the last blocks may be shorter."""
  padded = np.pad(kernel, [(0, -len(kernel) % block_size), (0, 0)])
  return np.linalg.norm(padded.reshape(-1, block_size, kernel.shape[1]), axis=1)


def _gate_norms(wavenet, importance=magnitude):
  """For each layer, the norm of the importances of each gate's weights into later layers and the head, [C]."""
  to_head = np.split(importance(wavenet.head.hidden.kernel), len(wavenet.blocks))
  norms = []
  for block, head in zip(wavenet.blocks, to_head, strict=True):
    given = head if block.last else np.concatenate([head, importance(block.residual.kernel)], axis=1)
    norms.append(np.linalg.norm(given, axis=1))
  return norms


def _stream_norms(wavenet, importance=magnitude):
  """The norm of the importances of all weights into each channel of the residual stream, [C]."""
  sources = [importance(variable).reshape(-1, wavenet.channels) for variable in wavenet.embedding.variables]
  for block in wavenet.blocks:
    if not block.last:
      sources += [importance(block.residual.kernel), importance(block.residual.bias)[np.newaxis]]
  return np.linalg.norm(np.concatenate(sources), axis=0)


def _mask_of_lowest(norms, num):
  """A float32 mask with zeros at the `num` lowest norms and ones elsewhere."""
  mask = np.ones(norms.shape, np.float32)
  mask[np.argsort(norms, kind="stable")[:num]] = 0
  return mask


def _highest(norms, num):
  """Indices of the `num` highest norms, in ascending order."""
  return np.sort(np.argsort(norms, kind="stable")[::-1][:num])
