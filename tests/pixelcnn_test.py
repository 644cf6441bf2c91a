import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvq.layers import CategoricalHead, HorizontalConv2D, VerticalConv2D
from tfvq.models import PixelCNN, gumbel_noise, noise_shape, sample, sample_naive


def model_and_condition(kind, batch_size, rng, **arguments):
  """A small model of each kind of conditioning, no weight of it zero, with a condition for it."""
  arguments = {"num_values": 7, "grid_shape": (5, 4), "filters": 8, "num_layers": 2, "hidden_units": 16, **arguments}
  label = tf.constant(rng.integers(0, 3, batch_size), tf.int32)
  local = tf.constant(rng.normal(size=(batch_size, *arguments["grid_shape"][:2], 6)))
  kind_arguments, condition = {
    "none": ({}, None),
    "label": ({"num_classes": 3}, {"label": label}),
    "vector": ({"condition_dim": 6}, {"local": tf.constant(rng.normal(size=(batch_size, 1, 1, 6)))}),
    "local": ({"condition_dim": 6}, {"local": local}),
    "both": ({"num_classes": 3, "condition_dim": 6}, {"label": label, "local": local}),
  }[kind]
  model = PixelCNN(**kind_arguments, **arguments)
  for weight in model.weights:
    if not np.any(weight):
      weight.assign(0.1 * rng.normal(size=weight.shape))
  return model, condition


KINDS = ("none", "label", "vector", "local", "both")


def masked_kernel(kernel, size):
  """The uncut kernel of a causal convolution: zeros where a masked convolution has its mask."""
  full = np.zeros((size, size, *kernel.shape[2:]))
  height, width = kernel.shape[:2]
  if height == 1:
    full[size // 2, :width] = kernel[0]
  else:
    full[:height] = kernel
  return full


@pytest.mark.parametrize("layer_class", [VerticalConv2D, HorizontalConv2D])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_causal_convolutions_are_masked_convolutions(layer_class, kernel_size, rng):
  layer = layer_class(6, kernel_size)
  x = rng.normal(size=(2, 7, 6, 3)).astype(np.float32)
  y = layer(x)
  expected = tf.nn.conv2d(x, masked_kernel(layer.kernel.numpy(), kernel_size), 1, "SAME") + layer.bias
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_even_kernels_are_refused():
  with pytest.raises(ValueError, match="odd"):
    VerticalConv2D(4, 2)


@pytest.mark.parametrize("grid_shape", [(4, 5), (3, 4, 2)])
def test_a_position_depends_on_all_before_it_and_on_none_after_it(grid_shape, rng):
  # Reach: three layers of kernel 3 see all of so small a grid.
  model = PixelCNN(5, grid_shape, filters=8, num_layers=6, hidden_units=16)
  x = rng.integers(0, 5, (1, *grid_shape))
  logits = model(x).numpy().reshape(-1, 5)
  for index in range(logits.shape[0]):
    changed = x.copy().reshape(-1)
    changed[index] = (changed[index] + 1) % 5
    moved = np.abs(model(changed.reshape(x.shape)).numpy().reshape(-1, 5) - logits).max(axis=-1) > 1e-7
    assert not moved[: index + 1].any(), f"the future at {index} has an influence"
    assert moved[index + 1 :].all(), f"the past at {index} has no influence"


@pytest.mark.parametrize("grid_shape", [(4, 5), (3, 4, 2)])
def test_a_map_has_an_influence_everywhere_it_may_and_the_future_has_none(grid_shape, rng):
  """A position hears of the map at and before its own place, and the values keep their order."""
  model, condition = model_and_condition("local", 1, rng, grid_shape=grid_shape, num_layers=6)
  x, local = rng.integers(0, 7, (1, *grid_shape)), condition["local"].numpy()
  logits = model((x, condition)).numpy()
  for row, column in itertools.product(range(grid_shape[0]), range(grid_shape[1])):
    changed_map, changed_x = local.copy(), x.copy()
    changed_map[0, row, column] += 1
    changed_x[0, row, column] = (changed_x[0, row, column] + 1) % 7
    by_map = np.abs(model((x, {"local": changed_map})).numpy() - logits).max(axis=(-2, -1))[0] > 1e-7
    assert by_map[row, column] and by_map[row + 1 :].all(), f"the map at {row, column} has no influence"
    by_value = np.abs(model((changed_x, condition)).numpy() - logits).max(axis=-1)[0] > 1e-7
    before = np.arange(grid_shape[0] * grid_shape[1]).reshape(grid_shape[:2]) < row * grid_shape[1] + column
    assert not by_value[before].any() and not by_value[row, column, 0], f"the future at {row, column} has an influence"
    after = np.arange(grid_shape[0] * grid_shape[1]).reshape(grid_shape[:2]) > row * grid_shape[1] + column
    assert by_value[after].all(), f"the past at {row, column} has no influence"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grid_shape", [(5, 4), (4, 5, 3)])
def test_row_and_step_give_the_whole_networks_parameters(kind, grid_shape, rng):
  model, condition = model_and_condition(kind, 3, rng, grid_shape=grid_shape, kernel_size=5)
  x = rng.integers(0, 7, (3, *grid_shape))
  whole = model((x, condition)).numpy()
  values = tf.constant(x.reshape(3, *grid_shape[:2], -1), tf.int32)
  projected, state = model.project_condition(condition), model.initial_state(3)
  for row in range(model.height):
    state = model.row(values[:, row - 1], state, projected)
    for column in range(model.width):
      features, state = model.step(values[:, row, column - 1], state)
      logits = model.head(features, values[:, row, column])
      np.testing.assert_allclose(logits, whole[:, row, column], atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_cached_samples_are_the_naive_samplers_in_float64(kind, temperature, rng):
  keras.config.set_dtype_policy("float64")
  model, condition = model_and_condition(kind, 4, rng, ordinal=True)
  noise = tf.cast(gumbel_noise(3, noise_shape(model, 4)), tf.float64)
  cached = tf.function(sample)(model, noise, condition, temperature)
  naive = tf.function(sample_naive)(model, noise, condition, temperature)
  np.testing.assert_array_equal(cached, naive)
  assert len(np.unique(cached)) > 2


@pytest.mark.parametrize("grid_shape", [(6, 6), (3, 3, 3)])
def test_cached_samples_with_xla_are_the_naive_samplers(grid_shape, rng):
  keras.config.set_dtype_policy("float64")
  model = PixelCNN(6, grid_shape, filters=8, num_layers=2, hidden_units=16)
  noise = tf.cast(gumbel_noise(4, noise_shape(model, 2)), tf.float64)
  compiled = tf.function(sample, jit_compile=True)(model, noise)
  np.testing.assert_array_equal(compiled, sample_naive(model, noise))


def test_in_float32_samples_agree_up_to_the_first_draw_of_small_margin(rng):
  model = PixelCNN(50, (8, 8), filters=16, num_layers=4)
  noise = gumbel_noise(5, noise_shape(model, 8))
  cached = tf.function(sample)(model, noise).numpy().reshape(8, -1)
  naive = tf.function(sample_naive)(model, noise).numpy().reshape(8, -1)
  scores = model(naive.reshape(8, 8, 8)).numpy()[:, :, :, 0] + tf.transpose(noise[:, :, :, 0], [2, 0, 1, 3]).numpy()
  top_two = np.sort(scores, axis=-1)[..., -2:]
  margins = (top_two[..., 1] - top_two[..., 0]).reshape(8, -1)
  for one, other, margin in zip(cached, naive, margins, strict=True):
    differing = np.flatnonzero(one != other)
    assert differing.size == 0 or margin[differing[0]] < 1e-4


def test_temperature_zero_takes_the_most_probable_value(rng):
  model = PixelCNN(7, (4, 4), filters=8, num_layers=2)
  noise = gumbel_noise(6, noise_shape(model, 2))
  values = sample(model, noise, temperature=0.0)
  np.testing.assert_array_equal(values, tf.argmax(model(values)[:, :, :, 0], axis=-1))


def test_samples_have_the_models_distribution():
  # One position: the samples are draws from the softmax of the first logits.
  model = PixelCNN(4, (1, 1), filters=4, num_layers=1, hidden_units=8)
  model.head.outputs[0].bias.assign([0.0, 1.0, 2.0, -1.0])
  values = sample(model, gumbel_noise(7, noise_shape(model, 20_000))).numpy().ravel()
  probabilities = tf.nn.softmax(model(np.zeros([1, 1, 1], np.int32)))[0, 0, 0, 0]
  np.testing.assert_allclose(np.bincount(values, minlength=4) / 20_000, probabilities, atol=0.015)


@pytest.mark.parametrize("grid_shape", [(2, 2), (1, 2, 2)])
def test_enumerated_probabilities_sum_to_one(grid_shape):
  model = PixelCNN(3, grid_shape, filters=6, num_layers=2, hidden_units=8)
  everything = np.array(list(itertools.product(range(3), repeat=4))).reshape(-1, *grid_shape)
  np.testing.assert_allclose(np.exp(model.log_prob(everything)).sum(), 1, rtol=1e-4)


@pytest.mark.parametrize("num_values", [2, 512])
def test_zero_logits_cost_log2_k_bits(num_values, rng):
  model = PixelCNN(num_values, (3, 5), filters=4, num_layers=1, hidden_units=8)
  model.head.outputs[0].kernel.assign(tf.zeros_like(model.head.outputs[0].kernel))
  x = rng.integers(0, num_values, (2, 3, 5))
  np.testing.assert_allclose(model.log_prob(x) / np.log(2), -15 * np.log2(num_values), rtol=1e-5)
  model.compile("sgd")
  metrics = model.evaluate(x, verbose=0, return_dict=True)
  np.testing.assert_allclose(metrics["bits_per_value"], np.log2(num_values), rtol=1e-5)
  np.testing.assert_allclose(metrics["loss"], np.log(num_values), rtol=1e-5)


def test_head_log_prob_by_hand():
  head = CategoricalHead(3, num_variables=2, hidden_units=4)
  head.build((None, 5))
  for output in head.outputs:
    output.kernel.assign(tf.zeros_like(output.kernel))
  head.outputs[0].bias.assign(np.log([0.5, 0.25, 0.25]))
  head.outputs[1].bias.assign(np.log([0.1, 0.2, 0.7]))
  x = tf.constant([[0, 2], [1, 0]])
  log_prob = head.log_prob(head(tf.ones([2, 5]), x), x)
  np.testing.assert_allclose(np.exp(log_prob), [0.35, 0.025], rtol=1e-5)


def test_learns_a_rule_that_needs_both_stacks(rng):
  # Each value is the sum of the ones above and to the left: a blind spot would leave it unpredictable.
  grids = rng.integers(0, 4, (2048, 4, 4))
  for row, column in itertools.product(range(1, 4), range(1, 4)):
    grids[:, row, column] = (grids[:, row - 1, column] + grids[:, row, column - 1]) % 4
  model = PixelCNN(4, (4, 4), filters=24, num_layers=3, hidden_units=48)
  model.compile(keras.optimizers.Adam(1e-2))
  model.fit(grids[256:], epochs=25, batch_size=64, verbose=0)
  bits_per_value = model.evaluate(grids[:256], verbose=0, return_dict=True)["bits_per_value"]
  assert 7 / 16 * 2 <= bits_per_value < 7 / 16 * 2 + 0.1  # seven free values of two bits


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind, tmp_path, rng):
  model, condition = model_and_condition(kind, 2, rng, grid_shape=(4, 5, 2), ordinal=True, dropout=0.1)
  x = rng.integers(0, 7, (2, 4, 5, 2))
  model.save(tmp_path / "model.keras")
  loaded = keras.saving.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(loaded.log_prob(x, condition), model.log_prob(x, condition))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_low_precision_gives_float32_logits_and_samples(policy):
  keras.config.set_dtype_policy(policy)
  model = PixelCNN(7, (3, 4), filters=8, num_layers=2, hidden_units=16)
  assert model(np.zeros([2, 3, 4], np.int32)).dtype == tf.float32
  assert sample(model, gumbel_noise(0, noise_shape(model, 2))).shape == (2, 3, 4)


def test_wrong_use_is_refused():
  with pytest.raises(ValueError, match="grid_shape"):
    PixelCNN(7, (3,))
  with pytest.raises(ValueError, match="num_layers"):
    PixelCNN(7, (3, 3), num_layers=0)


def test_a_condition_that_does_not_suit_is_refused(rng):
  x = np.zeros([3, 5, 4], np.int32)
  labelled, condition = model_and_condition("label", 3, rng)
  with pytest.raises(ValueError, match="is conditioned on 'label', but the condition given has nothing"):
    labelled.log_prob(x)
  with pytest.raises(ValueError, match="must be a dict of named tensors"):
    labelled.log_prob(x, condition["label"])
  with pytest.raises(ValueError, match=r"'label' of .* must have the shape \(None,\), but has \(3, 1\)"):
    labelled.log_prob(x, {"label": condition["label"][:, tf.newaxis]})
  plain, _ = model_and_condition("none", 3, rng)
  with pytest.raises(ValueError, match="is conditioned on nothing, but the condition given has 'label'"):
    plain.log_prob(x, condition)
  mapped, condition = model_and_condition("local", 3, rng)
  with pytest.raises(ValueError, match=r"'local' of .* must have the shape \(None, 5, 4, 6\), but has \(3, 4, 4, 6\)"):
    mapped.log_prob(x, {"local": condition["local"][:, 1:]})
  with pytest.raises(ValueError, match=r"must have the shape \(None, 5, 4, 6\), but has \(3, 5, 4, 1\)"):
    mapped.log_prob(x, {"local": condition["local"][..., :1]})


def test_noise_of_another_shape_is_refused(rng):
  model, _ = model_and_condition("none", 3, rng)
  with pytest.raises(ValueError, match=r"must have the shape \(5, 4, None, 1, 7\), but has \(4, 5, 3, 1, 7\)"):
    sample(model, gumbel_noise(0, [4, 5, 3, 1, 7]))
  with pytest.raises(ValueError, match="samples grids: leave out num_steps"):
    noise_shape(model, 3, 20)


@pytest.mark.parametrize("kind", KINDS)
def test_models_are_exported_after_fit(kind, tmp_path, rng):
  model, condition = model_and_condition(kind, 3, rng, num_layers=1)
  x = rng.integers(0, 7, (3, 5, 4)).astype(np.int32)
  if condition is not None:
    condition = {name: tf.cast(value, "int32" if name == "label" else "float32") for name, value in condition.items()}
  inputs = x if condition is None else (x, condition)
  model.compile("sgd")
  model.fit(tf.data.Dataset.from_tensors((inputs,)), verbose=0)
  signature = None
  if kind == "vector":
    local = keras.InputSpec(shape=(None, 1, 1, 6), dtype="float32")
    signature = [(keras.InputSpec(shape=(None, 5, 4), dtype="int32"), {"local": local})]
  model.export(tmp_path / "exported", verbose=False, input_signature=signature)
  loaded = tf.saved_model.load(str(tmp_path / "exported"))
  served = loaded.serve(tf.nest.map_structure(tf.constant, inputs))
  np.testing.assert_allclose(served, model(inputs), atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("run", ["fit", "evaluate"])
@pytest.mark.parametrize("wrong", [-1, 7])
def test_values_out_of_range_are_refused(jit_compile, run, wrong, rng):
  model, _ = model_and_condition("none", 3, rng, num_layers=1)
  model.compile("sgd", jit_compile=jit_compile)
  x = rng.integers(0, 7, (4, 5, 4)).astype(np.int32)
  getattr(model, run)(x, verbose=0)
  x[1, 2, 3] = wrong
  try:
    getattr(model, run)(x, verbose=0)
  except tf.errors.InvalidArgumentError as error:  # the CPU's look-up of embeddings says so first
    assert "[0, 7)" in str(error) and not jit_compile
  except ValueError as error:
    assert "25.0% of the examples for pixel_cnn" in str(error) and "outside 0..6" in str(error)
  else:
    pytest.fail("nothing was said")
  with pytest.raises(ValueError, match=r"Values of .* must be in 0\.\.6"):
    model.log_prob(x)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("arguments", [{}, {"ordinal": True}, {"grid_shape": (3, 4, 2)}])
@pytest.mark.parametrize("wrong", [-1, 7, 2**31 - 1])
def test_in_a_graph_an_example_out_of_range_has_the_log_prob_nan(wrong, arguments, jit_compile, rng):
  model, condition = model_and_condition("label", 4, rng, **arguments)
  x = rng.integers(0, 7, (4, *model.grid_shape)).astype(np.int32)
  expected = model.log_prob(x, condition).numpy()
  label = condition["label"].numpy()
  x[1, 2, 3], label[2], expected[1:3] = wrong, 3, np.nan
  log_prob = tf.function(model.log_prob, jit_compile=jit_compile)
  np.testing.assert_allclose(log_prob(x, {"label": label}), expected, rtol=1e-5)


def test_labels_out_of_range_are_refused(rng):
  model, _ = model_and_condition("label", 3, rng, num_layers=1)
  x, condition = rng.integers(0, 7, (2, 5, 4)).astype(np.int32), {"label": np.array([1, 3], np.int32)}
  with pytest.raises(ValueError, match=r"the condition 'label' of .* must be in 0\.\.2"):
    model.log_prob(x, condition)
  model.compile("sgd", jit_compile=True)
  with pytest.raises(ValueError, match=r"50.0% of the examples for .* or a label outside 0\.\.2"):
    model.fit(tf.data.Dataset.from_tensors(((x, condition),)), verbose=0)


def test_weights_of_examples_are_refused(rng):
  model, _ = model_and_condition("none", 3, rng)
  model.compile("sgd")
  with pytest.raises(ValueError, match="leave out sample_weight"):
    model.fit(rng.integers(0, 7, (4, 5, 4)), sample_weight=np.ones(4), verbose=0)
