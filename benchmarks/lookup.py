"""Compares the quantiser with lucidrains' vector-quantize-pytorch: training, evaluation, memory for a large codebook.

Both do the same work on the same vectors with the same number of threads. Training computes the output, the commitment
loss, the (straight-through) gradient of both with respect to the input, and the update of the codebook by moving
averages. The revival of unused codes in both, and the rotation of gradients in the other library, are turned off.
Evaluation computes only the output.

pip install -r benchmarks/requirements.txt
python -m benchmarks.lookup
"""

import multiprocessing
import os
import pathlib
import re

import numpy as np

from benchmarks.timing import medians, report

DIM = 64
DECAY = 0.99
COMMITMENT_COST = 0.25
SIZES = ((512, 65_536), (8_192, 16_384), (65_536, 4_096))  # of the codebook, of the batch
NUM_THREADS = len(os.sched_getaffinity(0))


def make_tfvq(num_embeddings, z_e):
  """Makes functions without arguments that train and evaluate tfvq's layer.

  Args:
    num_embeddings: K.
    z_e: Float32 [N, DIM].

  Returns:
    A function that returns the gradient [N, DIM] and updates the codebook, and one that returns the output [N, DIM].
  """
  import tensorflow as tf

  from tfvq.layers import VectorQuantizer

  tf.config.threading.set_intra_op_parallelism_threads(NUM_THREADS)
  tf.config.threading.set_inter_op_parallelism_threads(NUM_THREADS)
  quantizer = VectorQuantizer(num_embeddings, DIM, commitment_cost=COMMITMENT_COST, decay=DECAY, revival_threshold=0)
  z_e = tf.constant(z_e)

  @tf.function
  def train():
    with tf.GradientTape() as tape:
      tape.watch(z_e)
      loss = tf.reduce_sum(quantizer(z_e, training=True)) + tf.add_n(quantizer.losses)
    return tape.gradient(loss, z_e)

  evaluate = tf.function(lambda: quantizer(z_e, training=False))
  return train, evaluate


def make_peer(num_embeddings, z_e):
  """The same as `make_tfvq` for the layer of vector-quantize-pytorch."""
  import torch
  from vector_quantize_pytorch import VectorQuantize

  torch.set_num_threads(NUM_THREADS)
  quantizer = VectorQuantize(
    dim=DIM,
    codebook_size=num_embeddings,
    commitment_weight=COMMITMENT_COST,
    decay=DECAY,
    threshold_ema_dead_code=0,
    rotation_trick=False,
  )
  z_e = torch.from_numpy(z_e)[None].requires_grad_()

  def train():
    quantizer.train()
    z_q, _, commitment_loss = quantizer(z_e)
    (gradient,) = torch.autograd.grad(z_q.sum() + commitment_loss.sum(), z_e)
    return gradient[0]

  def evaluate():
    quantizer.eval()
    with torch.no_grad():
      return quantizer(z_e)[0][0]

  return train, evaluate


def _vectors(num_vectors):
  return np.random.default_rng(0).normal(size=(num_vectors, DIM)).astype(np.float32)


def _extra_memory(make, num_embeddings, num_vectors, queue):
  """Growth of this process's peak memory in one evaluation, in MiB."""
  z_e = _vectors(num_vectors)
  _, small = make(num_embeddings, z_e[:8])
  small()
  _, evaluate = make(num_embeddings, z_e)
  before = _peak_mib()
  evaluate()
  queue.put(_peak_mib() - before)


def _peak_mib():
  """Peak memory of this process in MiB; `getrusage` would return that of the parent if it is higher."""
  status = pathlib.Path("/proc/self/status").read_text()
  return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def main():
  for num_embeddings, num_vectors in SIZES:
    z_e = _vectors(num_vectors)
    ours, peer = make_tfvq(num_embeddings, z_e), make_peer(num_embeddings, z_e)
    for mode, name in enumerate(("training", "evaluation")):
      seconds = medians({"vector-quantize-pytorch": peer[mode], "tfvq": ours[mode]})
      title = f"{name}, K={num_embeddings}, D={DIM}, {num_vectors} vectors, {NUM_THREADS} threads"
      report(title, seconds, "vector-quantize-pytorch", num_vectors, "vectors")
  context = multiprocessing.get_context("spawn")
  for make in (make_peer, make_tfvq):
    queue = context.Queue()
    process = context.Process(target=_extra_memory, args=(make, *SIZES[-1], queue))
    process.start()
    print(f"extra memory, K={SIZES[-1][0]}, {SIZES[-1][1]} vectors, {make.__name__[5:]}: {queue.get():.0f} MiB")
    process.join()


if __name__ == "__main__":
  main()
