import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from export import tflite
from export.device import SpeechCodec as DeviceCodec
from export.exporter import export
from export.parity import measure_parity
from tfvq.endpoints.wavenet import step_endpoint
from tfvq.errors import UserError
from tfvq.files import sha256
from tfvq.layers import CategoricalHead
from tfvq.models import WaveNet
from tfvq.models.wavenet_pruning import block_masks, channel_masks, layer_masks, magnitude, masks_of, remove_pruned
from tfvq.tasks.stages import open_task, run_stages
from tfvq.training.loading import load_model
from tfvq.training.muon import ConvMuon, PruningMuon
from tfvq.training.pruning import Pruning, apply_masks, saliency


def wavenet(rng, hidden_units=6, **changes):
  """A WaveNet with random weights."""
  arguments = {"channels": 8, "dilation_rates": (1, 2, 4, 1), "condition_dim": 3, "num_speakers": 2, **changes}
  model = WaveNet(CategoricalHead(16, 2, hidden_units=hidden_units), **arguments)
  for variable in model.variables:
    variable.assign(0.5 * rng.normal(size=variable.shape))
  return model


def inputs(rng):
  condition = {"local": tf.constant(rng.normal(size=[2, 5, 3]), tf.float32), "speaker": tf.constant([0, 1])}
  return tf.constant(rng.integers(0, 16, [2, 20, 2]), tf.int32), condition


@pytest.mark.parametrize(("block_size", "sparsity"), [(4, 0.5), (16, 0.9), (4, 0.0)])
def test_blocks_are_whole_lowest_and_as_many_as_asked_for(block_size, sparsity, rng):
  model = wavenet(rng, channels=16)
  before = [np.array(kernel) for kernel, _ in block_masks(model, 0.0, block_size=block_size)]
  masks = block_masks(model, sparsity, block_size=block_size)
  assert len(masks) == 4 + 3 + 1 + 2  # conv, residual but the last, hidden, two outputs
  apply_masks(masks)
  kept, norms = [], []
  for (kernel, mask), old in zip(masks, before, strict=True):
    np.testing.assert_array_equal(kernel, old * mask)
    for block, weights in zip(blocks_of(mask, block_size, "edge"), blocks_of(old, block_size), strict=True):
      assert block.min() == block.max()
      kept.append(block[0])
      norms.append(np.linalg.norm(weights))
  kept, norms = np.array(kept), np.array(norms)
  assert np.count_nonzero(kept == 0) == int(sparsity * kept.size)
  assert norms[kept == 0].max(initial=0) <= norms[kept == 1].min()


def blocks_of(kernel, block_size, mode="constant"):
  """All blocks of a kernel, the last of an output padded, [N, block_size]."""
  padded = np.pad(kernel, [(0, -len(kernel) % block_size), (0, 0)], mode=mode)
  return padded.T.reshape(-1, block_size)


@pytest.mark.parametrize(
  "optimizer",
  [
    keras.optimizers.Adam(1e-12, beta_2=0.5),
    PruningMuon(1e-12, adam_beta_2=0.5, weight_decay=0.0, adam_weight_decay=0.0),
  ],
  ids=["adam", "muon"],
)
def test_what_goes_is_of_the_least_saliency(optimizer, rng):
  """After one step the mean of the squared gradients is 1 - beta_2 times those of that step."""
  model = wavenet(rng)
  optimizer.build(model.trainable_variables)
  gradients = [tf.constant(rng.normal(size=variable.shape), tf.float32) for variable in model.trainable_variables]
  optimizer.apply(gradients, model.trainable_variables)
  importance = saliency(optimizer)
  for variable, gradient in zip(model.trainable_variables, gradients, strict=True):
    np.testing.assert_allclose(importance(variable), np.abs(variable * gradient) * np.sqrt(0.5), rtol=1e-4, atol=1e-6)
  kernel = model.blocks[1].conv.kernel
  worth = importance(kernel)
  (mask,) = [mask for found, mask in block_masks(model, 0.5, importance, block_size=4) if found is kernel]
  assert worth[mask == 1].mean() > worth[mask == 0].mean()
  for choose in (channel_masks, layer_masks):
    by_magnitude, by_saliency = (choose(model, 0.5, how) for how in (magnitude, importance))
    assert any(np.any(a != b) for (_, a), (_, b) in zip(by_magnitude, by_saliency, strict=True))


def test_pruning_with_an_optimiser_that_cannot_tell_what_matters_is_refused(rng):
  model = wavenet(rng)
  model.compile(ConvMuon(0.01))
  x, condition = inputs(rng)
  data = tf.data.Dataset.from_tensors(((x, condition),))
  with pytest.raises(UserError, match="set train.prune.optimizer to adam or pruning_muon"):
    model.fit(data, verbose=0, callbacks=[Pruning(model, channel_masks, 0.5, 1)])


def test_what_is_pruned_has_no_part_in_the_updates_of_muon(rng):
  """A matrix with columns of zeros is trained as the smaller matrix without them."""
  weights = rng.normal(size=[6, 4]).astype(np.float32)
  weights[:, [1, 3]] = 0
  whole, small = keras.Variable(weights), keras.Variable(weights[:, [0, 2]])
  settings = {"weight_decay": 0.0, "adam_weight_decay": 0.0}
  pruning, plain = PruningMuon(0.1, **settings), ConvMuon(0.1, **settings)
  for _ in range(3):
    gradient = rng.normal(size=[6, 4]).astype(np.float32)
    pruning.apply([gradient], [whole])
    plain.apply([gradient[:, [0, 2]]], [small])
  np.testing.assert_allclose(whole[:, ::2], small, rtol=1e-4)
  assert np.abs(small - weights[:, ::2]).min() > 1e-3
  np.testing.assert_array_equal(whole[:, 1::2], 0)


@pytest.mark.parametrize("ordinal", [True, False])
@pytest.mark.parametrize(
  ("choose", "sparsity", "channels", "num_layers"),
  [(channel_masks, 0.5, 4, 4), (channel_masks, 0.99, 1, 4), (layer_masks, 0.5, 8, 2), (layer_masks, 0.99, 8, 1)],
)
def test_removal_of_pruned_units_keeps_the_output(choose, sparsity, channels, num_layers, ordinal, rng):
  model = wavenet(rng, ordinal=ordinal)
  x, condition = inputs(rng)
  whole = model.log_prob(x, condition)
  apply_masks(choose(model, sparsity))
  pruned = model.log_prob(x, condition)
  small = remove_pruned(model)
  assert (small.channels, len(small.blocks)) == (channels, num_layers)
  np.testing.assert_allclose(small.log_prob(x, condition), pruned, rtol=1e-5)
  assert np.abs(pruned - whole).min() > 1e-3 and small.count_params() < model.count_params()


def test_what_is_not_pruned_is_not_remove_pruned(rng):
  model = wavenet(rng)
  x, condition = inputs(rng)
  small = remove_pruned(model)
  assert small.count_params() == model.count_params()
  np.testing.assert_allclose(small.log_prob(x, condition), model.log_prob(x, condition), rtol=1e-6)


@pytest.mark.parametrize(("method", "sparsity"), [("blocks", 0.75), ("channels", 0.5), ("layers", 0.5)])
def test_sparsity_follows_the_cubic_schedule_and_is_exact_after_every_step(method, sparsity, rng):
  model = WaveNet(CategoricalHead(16, hidden_units=8), channels=8, dilation_rates=(1, 2, 4, 8))
  asked, zeros = [], []

  def choose(network, now, importance):
    asked.append(now)
    return masks_of(method, 4)(network, now, importance)

  class Watch(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
      kernels = [np.array(model.head.hidden.kernel)]
      if method == "blocks":
        kernels = [np.array(kernel) for kernel, _ in block_masks(model, 0.0, block_size=4)]
      zeros.append(np.mean(np.concatenate([kernel.ravel() for kernel in kernels]) == 0))

  model.compile(keras.optimizers.Adam(0.01))
  data = tf.data.Dataset.from_tensors(((tf.constant(rng.integers(0, 16, [4, 50, 1]), tf.int32), None),)).repeat()
  model.fit(data, steps_per_epoch=60, verbose=0, callbacks=[Pruning(model, choose, sparsity, 40), Watch()])
  np.testing.assert_allclose(asked, [sparsity * (1 - (1 - step / 40) ** 3) for step in (0, 10, 20, 30, 40)])
  assert np.all(np.diff(zeros) >= -1e-9)
  expected = {"blocks": 0.75, "channels": 0.5, "layers": 0.5}[method]
  assert all(found == expected for found in zeros[40:])
  masked = [np.array(variable) for variable, _ in masks_of(method, 4)(model, sparsity)]
  apply_masks(masks_of(method, 4)(model, sparsity))
  for before, (after, _) in zip(masked, masks_of(method, 4)(model, sparsity), strict=True):
    np.testing.assert_array_equal(before, after)


def test_a_resumed_pruning_goes_on_with_what_was_chosen(rng):
  """Stopped between two choices, within the ramp and after it: the same weights are left as without the stop."""
  data = tf.data.Dataset.from_tensors(((tf.constant(rng.integers(0, 16, [4, 50, 1]), tf.int32), None),)).repeat()

  def trained(parts):
    keras.utils.set_random_seed(0)
    model = WaveNet(CategoricalHead(16, hidden_units=8), channels=8, dilation_rates=(1, 2, 4, 8))
    model.compile(keras.optimizers.Adam(0.01))
    zeros = []
    for steps in parts:
      pruning = Pruning(model, masks_of("blocks", 4), 0.75, 40)
      model.fit(data, steps_per_epoch=steps, verbose=0, callbacks=[pruning])
      zeros.append([np.array(kernel) == 0 for kernel, _ in block_masks(model, 0.0, block_size=4)])
    return zeros

  (whole,) = trained([65])
  for parts in ([25, 40], [7, 58], [55, 10]):
    stopped, resumed = trained(parts)
    for before, after, expected in zip(stopped, resumed, whole, strict=True):
      assert np.all(after[before])  # what was pruned stays so
      np.testing.assert_array_equal(after, expected)


@pytest.mark.parametrize(
  ("mode", "block_size", "sparsity", "evenly"),
  [("none", 4, 0.8, True), ("none", 4, 0.8, False), ("dynamic", 16, 0.8, True)],
)
def test_zero_blocks_are_left_out_of_a_step(mode, block_size, sparsity, evenly, rng):
  """Unevenly: a kernel of which nothing is pruned is written as it is, beside others that are nearly empty."""
  model = wavenet(rng, hidden_units=32, channels=32)
  whole = None if evenly else model.blocks[0].residual.kernel
  worth = lambda kernel: magnitude(kernel) * (100 if kernel is whole else 1)
  examples = step_inputs(model, rng)
  dense = tflite.write(step_endpoint(model, lambda split: examples), mode)
  apply_masks(block_masks(model, sparsity, worth, block_size=block_size))
  assert evenly or np.all(np.array(whole) != 0)
  endpoint = step_endpoint(model, lambda split: examples)
  sparse = tflite.write(endpoint, mode)
  tensors = Interpreter(model_content=sparse).get_tensor_details()
  assert sum("block_map" in tensor["sparsity_parameters"] for tensor in tensors) >= 8
  assert len(sparse) < 0.6 * len(dense)
  for xnnpack in (True, False):
    parity = measure_parity(endpoint, tflite.Runner(sparse, xnnpack), examples)
    assert parity["inputs"]["relative_rms_error"] < (1e-5 if mode == "none" else 0.05)
    assert parity["values"]["share_equal"] >= (1 if mode == "none" else 0.8)


def test_int8_weights_are_written_dense_where_a_kernel_has_too_few_zeros(rng):
  """Beside sparse kernels, XNNPACK's int8 product of a dense one is wrong by more than the product itself."""
  model = wavenet(rng, hidden_units=32, channels=32)
  whole = model.blocks[0].residual.kernel
  worth = lambda kernel: magnitude(kernel) * (100 if kernel is whole else 1)
  apply_masks(block_masks(model, 0.8, worth, block_size=16))
  examples = step_inputs(model, rng)
  endpoint = step_endpoint(model, lambda split: examples)
  assert endpoint.sparse_modes == ("none",)
  parity = measure_parity(endpoint, tflite.Runner(tflite.write(endpoint, "dynamic")), examples)
  assert parity["inputs"]["relative_rms_error"] < 0.05


def test_zeros_that_are_not_blocks_are_written_as_they_are(rng):
  model = wavenet(rng, hidden_units=32, channels=32)
  assert not step_endpoint(model, None).sparse_modes
  apply_masks(block_masks(model, 0.8, block_size=4))
  assert step_endpoint(model, None).sparse_modes == ("none",)
  kernel = model.blocks[0].conv.kernel
  place = tuple(np.argwhere(np.array(kernel) != 0)[0])
  value = np.array(kernel)
  value[place] = 0
  kernel.assign(value)
  assert not step_endpoint(model, None).sparse_modes
  model = wavenet(rng, hidden_units=6, channels=32)
  apply_masks(block_masks(model, 0.8, block_size=4))
  assert not step_endpoint(model, None).sparse_modes


def step_inputs(model, rng):
  """Random inputs of a step."""
  specs = step_endpoint(model, None).inputs
  return [
    {name: rng.normal(size=spec.shape).astype(np.float32) for name, spec in specs.items() if name != "temperature"}
    | {"temperature": np.ones(specs["temperature"].shape, np.float32)}
    for _ in range(50)
  ]


@pytest.mark.slow
@pytest.mark.parametrize(
  ("method", "sparsity", "block_size"),
  [("channels", 0.5, 4), ("layers", 0.5, 4), ("blocks", 0.75, 4), ("blocks", 0.8, 8)],
)
def test_the_stage_prunes_a_trained_decoder_and_leaves_the_codes(
  method, sparsity, block_size, speech_run_folder, tmp_path, rng
):
  shutil.copytree(speech_run_folder, tmp_path / "run")
  config = json.loads((tmp_path / "run" / "config.json").read_text())
  config["pruning"] |= {"method": method, "sparsity": sparsity, "block_size": block_size}
  (tmp_path / "run" / "config.json").write_text(json.dumps(config))
  run = open_task(tmp_path / "run")
  run_stages(run, "prune")
  path = tmp_path / "run" / "prune" / "model.keras"
  whole, pruned = run.autoencoder, load_model(path)
  audio = tf.constant(0.1 * rng.normal(size=[1, 64 * 20]), tf.float32)
  np.testing.assert_array_equal(pruned.encode(audio), whole.encode(audio))
  wavenet, num_layers = pruned.decoder.wavenet, len(whole.decoder.wavenet.blocks)
  if method == "channels":
    assert wavenet.channels == 4 and len(wavenet.blocks) == num_layers
    export(run, tmp_path / "exported", ("tflite",), ("none",), path)
    codec = DeviceCodec(tmp_path / "exported" / "tflite" / "none")
    assert codec.facts["channels"] == 4 and codec.decode(rng.integers(0, 16, [10, 2])).shape == (640,)
    assert codec.facts["autoencoder_sha256"] == sha256(path)
  elif method == "layers":
    assert wavenet.channels == 8 and len(wavenet.blocks) == num_layers // 2
  else:
    for kernel, mask in block_masks(wavenet, sparsity, block_size=block_size):
      np.testing.assert_array_equal(kernel, np.array(kernel) * mask)
    assert step_endpoint(wavenet, None).sparse_modes == ("none",)
  metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
  assert metrics["decoder_weights_of_pruned"] < metrics["decoder_weights_of_dense"]
  np.testing.assert_allclose(metrics["nats_before_pruning"], metrics["nats_per_sample"], rtol=1e-5)
  np.testing.assert_allclose(metrics["nats_of_pruned"], run.loss_nats(pruned), rtol=1e-5)
  assert "decoder pruned" in (tmp_path / "run" / "report.html").read_text()
  (tmp_path / "run" / "evaluation" / "done.json").unlink()
  run_stages(open_task(tmp_path / "run"), "evaluation")
  again = json.loads((tmp_path / "run" / "metrics.json").read_text())
  assert again["nats_of_pruned"] == metrics["nats_of_pruned"]
