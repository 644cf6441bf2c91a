"""Times exported files in LiteRT on one thread: steps of WaveNets, and the speech codec of this package.

  python -m benchmarks.export
  python -m benchmarks.export --workdir=runs/speech --model=runs/speech/prune/model.keras

The first command times steps with random weights, and the codec of the package. The second times the step of a trained
decoder, and several of its steps in one call. Results are multiples of real time. "Products alone" is a graph with only
the matrix products of a step's layers and of the first layer of its head; its time is a lower bound for the step.
"""

import functools

import numpy as np
import tensorflow as tf
from absl import flags, logging

from benchmarks.timing import medians
from export import tflite
from export.device import SpeechCodec
from export.device.generation import GumbelNoise, StepLoop
from export.device.model import Model
from tfvq.endpoints.endpoint import Endpoint
from tfvq.endpoints.wavenet import step_endpoint
from tfvq.errors import parse_flags, run_program
from tfvq.layers import CategoricalHead
from tfvq.models import WaveNet
from tfvq.models.wavenet_pruning import block_masks
from tfvq.tasks.stages import open_task
from tfvq.training.loading import load_model
from tfvq.training.pruning import apply_masks

_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of a speech run.")
_MODEL = flags.DEFINE_string("model", "", "Model to time instead of the run's own, as for tfvq-export.")
_SECONDS = flags.DEFINE_float("seconds", 4.0, "Duration of the speech for the codec.")
_STEPS_PER_FRAME = 64


def main(argv):
  del argv
  logging.set_verbosity(logging.WARNING)  # the converters log every step
  if _WORKDIR.value:
    _time_trained()
  else:
    _time_steps(_networks())
    _time_codec()


def _time_trained():
  """Times the step of a trained decoder, and several steps in one call."""
  task = open_task(_WORKDIR.value)
  if _MODEL.value:
    task.autoencoder = load_model(_MODEL.value)
  decoder = task.autoencoder.decoder.wavenet
  title = f"{len(decoder.blocks)} x {decoder.channels}, {decoder.head.num_variables} bands, trained"
  _time_steps({title: (decoder, ("none", "dynamic"))})
  (endpoint,) = [endpoint for endpoint in task.device_endpoints() if endpoint.name == "steps"]
  num_steps, (inputs,) = endpoint.inputs["noise"].shape[0], endpoint.some_examples("held_out", 1)
  functions = {}
  for mode in ("none", "dynamic"):
    call = functools.partial(tflite.Runner(tflite.write(endpoint, mode)), **inputs)
    functions[f"{title}, {num_steps} steps and their audio in one call, {mode}"] = call
  num_samples = dict.fromkeys(functions, num_steps * decoder.head.num_variables)
  _report(medians(functions), num_samples, task.autoencoder.sample_rate_hz)


def _networks():
  """Networks by name, plain, pruned and with sub-bands, each with the TFLite modes to time it in."""
  both, twice = ("none", "dynamic"), lambda num: [2**layer for layer in range(num)] * 2
  return {
    "20 x 64": (_network(64, twice(10)), both),
    "20 x 64 without 90 % of its blocks of 4": (_network(64, twice(10), pruned=(0.9, 4)), ("none",)),
    "20 x 64 without 95 % of its blocks of 16": (_network(64, twice(10), pruned=(0.95, 16)), ("dynamic",)),
    "10 x 32": (_network(32, twice(5)), ("dynamic",)),
    "16 x 96, four sub-bands": (_network(96, twice(8), num_bands=4), both),
    "12 x 48, four sub-bands": (_network(48, twice(6), num_bands=4), both),
    "14 x 96, eight sub-bands": (_network(96, twice(7), num_bands=8, hidden_units=32), both),
  }


def _time_steps(networks):
  """Times a step of each network: its invocation alone, and the whole loop."""
  rng, functions = np.random.default_rng(0), {}
  for name, (wavenet, modes) in networks.items():
    endpoint, num_bands = step_endpoint(wavenet, lambda split: ()), wavenet.head.num_variables
    inputs = {key: 0.1 * rng.normal(size=spec.shape).astype(np.float32) for key, spec in endpoint.inputs.items()}
    products = Model(tflite.write(_products(wavenet), "none"))
    products.set("x", inputs["past"].reshape(1, -1))
    functions[f"{name}, products alone"] = (products.invoke, num_bands)
    for mode in modes:
      content = tflite.write(endpoint, mode)
      model = Model(content)
      for key, value in inputs.items():
        model.set(key, value)
      label = f"{name}, {mode}, {len(content) / 1e6:.2f} MB"
      functions[f"{label}, invocation"] = (model.invoke, num_bands)
      functions[f"{label}, loop"] = (_loop(model, wavenet), num_bands * _STEPS_PER_FRAME)
  seconds = medians({name: function for name, (function, _) in functions.items()})
  _report(seconds, {name: num_samples for name, (_, num_samples) in functions.items()})


def _report(seconds, num_samples, sample_rate_hz=16_000):
  """Prints the time per sample of each function, given its number of samples per call."""
  for name, value in seconds.items():
    microseconds = 1e6 * value / num_samples[name]
    print(f"{name}: {microseconds:.1f} us a sample, {1e6 / sample_rate_hz / microseconds:.2f} times real time")


def _network(channels, dilation_rates, num_bands=1, hidden_units=64, pruned=None):
  """A WaveNet with random weights; `pruned` is (sparsity, block size) of blocks that are pruned at random."""
  network = WaveNet(CategoricalHead(256, num_bands, hidden_units), channels, dilation_rates, condition_dim=128)
  if pruned:
    sparsity, block_size = pruned
    rng = np.random.default_rng(0)
    apply_masks(block_masks(network, sparsity, lambda kernel: rng.random(kernel.shape), block_size=block_size))
  return network


def _products(wavenet):
  """An endpoint with only the matrix products of a step; its input is as long as the longest input of a product."""
  x = tf.TensorSpec([1, wavenet.channels * len(wavenet.blocks)], tf.float32)
  kernels = [tf.constant(np.array(block.conv.kernel)) for block in wavenet.blocks]
  kernels += [tf.constant(np.array(block.residual.kernel)) for block in wavenet.blocks if not block.last]
  kernels.append(tf.constant(np.array(wavenet.head.hidden.kernel)))

  def multiply(x):
    return {"y": sum(tf.reduce_sum(x[:, : kernel.shape[0]] @ kernel) for kernel in kernels)}

  return Endpoint("products", multiply, {"x": x}, wavenet, examples=None)


def _loop(model, wavenet):
  facts = {
    "steps_per_frame": _STEPS_PER_FRAME,
    "dilation_rates": wavenet.dilation_rates,
    "channels": wavenet.channels,
  }
  loop, noise = StepLoop(model, facts), GumbelNoise(0, wavenet.head.noise_shape)
  projected = np.zeros([1, 2 * wavenet.channels * len(wavenet.blocks)], np.float32)
  temperature = np.ones([wavenet.head.num_variables], np.float32)
  return lambda: loop.run(projected, noise(_STEPS_PER_FRAME), temperature)


def _time_codec():
  """Times the codec that the package ships."""
  codec, rng = SpeechCodec(), np.random.default_rng(0)
  audio = (0.1 * rng.normal(size=int(_SECONDS.value * codec.sample_rate_hz))).astype(np.float32)
  codes = codec.encode(audio)
  encoder = codec.model("encoder")
  at_once = codec.facts["encoder_frames"] * codec.hop_samples
  encoder.set("audio", audio[np.newaxis, : at_once + 2 * codec.facts["encoder_context_frames"] * codec.hop_samples])
  lengths = {"encoder, invocation": at_once, "encode": len(audio), "decode": len(audio), "both": len(audio)}
  seconds = medians(
    {
      "encoder, invocation": encoder.invoke,
      "encode": lambda: codec.encode(audio),
      "decode": lambda: codec.decode(codes),
      "both": lambda: codec.decode(codec.encode(audio)),
    }
  )
  for name, num_samples in lengths.items():
    print(f"codec, {name}: {num_samples / codec.sample_rate_hz / seconds[name]:.1f} times real time")


if __name__ == "__main__":
  run_program(main, lambda argv: parse_flags(argv, __doc__, (_WORKDIR, _MODEL, _SECONDS)))
