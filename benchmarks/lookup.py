"""Code look-up beside lucidrains' vector-quantize-pytorch: training and evaluation, and the memory of a large codebook.

pip install -r benchmarks/requirements.txt
python -m benchmarks.lookup
"""

import multiprocessing
import os
import pathlib
import re

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.timing import medians, report

DIM = 64
SIZES = ((512, 65_536), (8_192, 16_384), (65_536, 4_096))


def make_tfvq(num_embeddings, z_e):
  """Training and evaluation of tfvq's layer as functions of no argument."""
  import tensorflow as tf

  from tfvq.layers import VectorQuantizer

  quantizer = VectorQuantizer(num_embeddings, DIM)
  z_e = tf.constant(z_e)
  train = tf.function(lambda: quantizer(z_e, training=True))
  encode = tf.function(lambda: quantizer.encode(z_e))
  return train, encode


def make_peer(num_embeddings, z_e):
  """The same of the peer's."""
  import torch
  from vector_quantize_pytorch import VectorQuantize

  quantizer = VectorQuantize(dim=DIM, codebook_size=num_embeddings, decay=0.99, threshold_ema_dead_code=0)
  z_e = torch.from_numpy(z_e)[None]

  def train():
    quantizer.train()
    return quantizer(z_e)

  def evaluate():
    quantizer.eval()
    with torch.no_grad():
      return quantizer(z_e)

  return train, evaluate


def _extra_memory(make, num_embeddings, num_vectors, queue):
  """Growth of the peak memory by one evaluation, in MiB, in a process of its own."""
  z_e = np.random.default_rng(0).normal(size=(num_vectors, DIM)).astype(np.float32)
  _, small = make(num_embeddings, z_e[:8])
  small()
  _, evaluate = make(num_embeddings, z_e)
  before = _peak_mib()
  evaluate()
  queue.put(_peak_mib() - before)


def _peak_mib():
  """Peak memory of this process in MiB; `getrusage` would tell the parent's if that is higher."""
  status = pathlib.Path("/proc/self/status").read_text()
  return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


def main():
  for num_embeddings, num_vectors in SIZES:
    z_e = np.random.default_rng(0).normal(size=(num_vectors, DIM)).astype(np.float32)
    ours, peer = make_tfvq(num_embeddings, z_e), make_peer(num_embeddings, z_e)
    for mode, name in enumerate(("training", "evaluation")):
      seconds = medians({"vector-quantize-pytorch": peer[mode], "tfvq": ours[mode]})
      title = f"{name}, K={num_embeddings}, D={DIM}, {num_vectors} vectors"
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
