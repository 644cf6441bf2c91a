import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvq.layers import AudioValues, CategoricalHead, LogisticMixtureHead
from tfvq.models import (
  WaveNet,
  generation_start,
  gumbel_noise,
  noise_shape,
  sample,
  sample_naive,
  sample_steps,
)
from tfvq.ops.matmul import matmul_precision

CONDITIONS = ("none", "local", "speaker", "both")


def wavenet(condition="none", num_steps=12, batch_size=2, rng=None, head=None, rates=(1, 2, 4, 1, 2), **arguments):
  """A small model with a condition for it, none of its weights zero."""
  rng = rng or np.random.default_rng(0)
  local, speaker = condition in ("local", "both"), condition in ("speaker", "both")
  model = WaveNet(
    head or CategoricalHead(6, 2, hidden_units=16),
    channels=8,
    dilation_rates=rates,
    condition_dim=3 if local else 0,
    num_speakers=4 if speaker else 0,
    **arguments,
  )
  for weight in model.weights:
    if not np.any(weight):
      weight.assign(0.1 * rng.normal(size=weight.shape))
  given = {}
  if local:
    given["local"] = tf.constant(rng.normal(size=(batch_size, num_steps // 3, 3)))
  if speaker:
    given["speaker"] = tf.constant(rng.integers(0, 4, batch_size), tf.int32)
  return model, given or None


def plain_wavenet(model, x):
  """The network of one stream in NumPy float64, step by step from its definition."""

  def dense(layer, value):
    return value @ layer.kernel.numpy().astype(np.float64) + layer.bias.numpy()

  embedded = [np.zeros(model.channels)]
  for values in x[:-1]:
    rows = values + model.head.num_values * np.arange(model.head.num_variables)
    embedded.append(model.embedding.embeddings.numpy().astype(np.float64)[rows].sum(axis=0))
  layer_input, skips = np.array(embedded), []
  for block in model.blocks:
    output, gated = [], []
    for time, present in enumerate(layer_input):
      past = layer_input[time - block.dilation_rate] if time >= block.dilation_rate else np.zeros(model.channels)
      filters, gates = np.split(dense(block.conv, np.concatenate([past, present])), 2)
      gated.append(np.tanh(filters) / (1 + np.exp(-gates)))
      output.append(present if block.last else present + dense(block.residual, gated[-1]))
    layer_input = np.array(output)
    skips.append(np.array(gated))
  return np.concatenate(skips, axis=-1)


def test_features_are_those_of_the_definition(rng):
  model, _ = wavenet(ordinal=False, rng=rng)
  x = rng.integers(0, 6, (12, 2))
  features = model.features(tf.constant(x[np.newaxis], tf.int32))
  np.testing.assert_allclose(features[0], plain_wavenet(model, x), atol=1e-5)


@pytest.mark.parametrize("head", [CategoricalHead(6, 2, hidden_units=16), LogisticMixtureHead(256, 2, hidden_units=16)])
def test_products_in_bfloat16_are_near_those_in_float32(head, rng):
  model, condition = wavenet("both", rng=rng, head=head)
  x = tf.constant(rng.integers(0, head.num_values, (2, 12, 2)), tf.int32)

  def gradients():
    with tf.GradientTape() as tape:
      nats = -model.log_prob(x, condition)
    return nats, tape.gradient(nats, [variable.value for variable in model.trainable_variables])

  nats, exact = gradients()
  with matmul_precision(tf.bfloat16):
    rounded_nats, rounded = gradients()
  np.testing.assert_allclose(rounded_nats, nats, rtol=1e-2)
  assert np.any(rounded_nats != nats)
  rounded, exact = (
    tf.concat([tf.reshape(tf.convert_to_tensor(value), [-1]) for value in values], axis=0)
    for values in (rounded, exact)
  )
  assert rounded.dtype == tf.float32
  # Hidden units near zero may be cut off in one of the two only.
  assert np.dot(rounded, exact) > 0.99 * np.linalg.norm(rounded) * np.linalg.norm(exact)
  np.testing.assert_array_equal(-model.log_prob(x, condition), nats)


def test_a_step_depends_on_its_receptive_field_and_on_nothing_else(rng):
  model, _ = wavenet(rng=rng, rates=(1, 2, 4), head=CategoricalHead(6, 1, hidden_units=16))
  assert model.receptive_field == 8
  x = rng.integers(0, 6, (1, 20, 1)).astype(np.int32)
  logits = model((x, None)).numpy()[0, :, 0]
  for index in range(20):
    changed = x.copy()
    changed[0, index] = (changed[0, index] + 3) % 6
    moved = np.abs(model((changed, None)).numpy()[0, :, 0] - logits).max(axis=-1) > 1e-6
    expected = [0 < time - index <= model.receptive_field for time in range(20)]
    np.testing.assert_array_equal(moved, expected)


def test_values_of_a_step_depend_on_those_before_them_in_it(rng):
  model, _ = wavenet(rng=rng)
  x = rng.integers(0, 6, (1, 6, 2)).astype(np.int32)
  changed = x.copy()
  changed[0, 5] = (changed[0, 5] + 1) % 6
  moved = np.abs(model((changed, None)) - model((x, None))).max(axis=-1) > 1e-6
  np.testing.assert_array_equal(moved[0, 5], [False, True])
  assert not moved[0, :5].any()


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("ordinal", [True, False])
def test_steps_give_the_whole_networks_parameters(condition, ordinal, rng):
  model, given = wavenet(condition, rng=rng, ordinal=ordinal)
  x = tf.constant(rng.integers(0, 6, (2, 12, 2)), tf.int32)
  whole = model((x, given))
  state, x_before = generation_start(model, 2)
  projected = model.project_condition(given)
  for time in range(12):
    features, state = model.step(x_before, state, projected[time // (12 // len(projected))])
    x_before = x[:, time]
    np.testing.assert_allclose(model.head(features, x_before), whole[:, time], atol=1e-4)


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("temperature", [1.0, (0.3, 0.8)])
@pytest.mark.parametrize("head_class", [CategoricalHead, LogisticMixtureHead])
def test_cached_samples_are_the_naive_samplers_in_float64(condition, temperature, head_class, rng):
  """Several times as many steps as the network looks back."""
  keras.config.set_dtype_policy("float64")
  head = head_class(6, 2, hidden_units=16)
  model, given = wavenet(condition, num_steps=36, rng=rng, head=head)
  noise = tf.cast(gumbel_noise(3, noise_shape(model, 2, 36)), tf.float64)
  temperature = tf.constant(temperature, tf.float64)
  cached = tf.function(sample)(model, noise, given, temperature)
  compiled = tf.function(sample, jit_compile=True)(model, noise, given, temperature)
  naive = sample_naive(model, noise, given, temperature)
  np.testing.assert_array_equal(cached, naive)
  np.testing.assert_array_equal(compiled, naive)
  assert len(np.unique(cached)) > 2


def test_in_float32_samples_agree_up_to_the_first_draw_of_small_margin(rng):
  model, given = wavenet("both", num_steps=60, batch_size=8, rng=rng, head=CategoricalHead(50, hidden_units=16))
  noise = gumbel_noise(5, noise_shape(model, 8, 60))
  cached = tf.function(sample, jit_compile=True)(model, noise, given).numpy()[..., 0]
  naive = tf.function(sample_naive)(model, noise, given).numpy()[..., 0]
  scores = (model((naive[..., np.newaxis], given)) + tf.transpose(noise, [1, 0, 2, 3]))[:, :, 0]
  top_two = np.sort(scores, axis=-1)[..., -2:]
  for one, other, margin in zip(cached, naive, top_two[..., 1] - top_two[..., 0], strict=True):
    differing = np.flatnonzero(one != other)
    assert differing.size == 0 or margin[differing[0]] < 1e-4


def test_a_sequence_made_in_parts_is_the_one_made_at_once(rng):
  model, given = wavenet("both", rng=rng)
  noise = gumbel_noise(1, noise_shape(model, 2, 12))
  whole = sample(model, noise, given)
  projected, generation, parts = model.project_condition(given), generation_start(model, 2), []
  for first in (0, 6):
    frames = projected[first // 3 : first // 3 + 2]
    values, generation = sample_steps(model, generation, noise[first : first + 6], frames)
    parts.append(values)
  np.testing.assert_array_equal(tf.transpose(tf.concat(parts, axis=0), [1, 0, 2]), whole)


@pytest.mark.parametrize(
  "head", [CategoricalHead(3, 2, hidden_units=4), LogisticMixtureHead(3, 2, num_mixtures=2, hidden_units=4)]
)
def test_probabilities_of_all_sequences_sum_to_one(head, rng):
  model, _ = wavenet(rng=rng, head=head, rates=(1, 2))
  sequences = np.array(list(itertools.product(range(3), repeat=6)), np.int32).reshape(-1, 3, 2)
  np.testing.assert_allclose(tf.reduce_sum(tf.exp(model.log_prob(sequences))), 1, rtol=1e-4)


def test_zero_logits_cost_log2_k_bits(rng):
  model, _ = wavenet(rng=rng, head=CategoricalHead(256, 1, hidden_units=4))
  for output in model.head.outputs:
    output.kernel.assign(tf.zeros_like(output.kernel))
    output.bias.assign(tf.zeros_like(output.bias))
  x = rng.integers(0, 256, (3, 10, 1)).astype(np.int32)
  np.testing.assert_allclose(model.log_prob(x), [-10 * np.log(256)] * 3, rtol=1e-6)
  model.compile("sgd")
  metrics = model.evaluate(tf.data.Dataset.from_tensors(((x, None),)), verbose=0, return_dict=True)
  np.testing.assert_allclose(metrics["bits_per_value"], 8, rtol=1e-6)


@pytest.mark.parametrize("num_values", [256, 65_536])
def test_samples_of_a_logistic_mixture_follow_its_probabilities(num_values):
  head = LogisticMixtureHead(num_values, 1, num_mixtures=2, hidden_units=4)
  head.build((None, 3))
  components = [[0.5, -0.5], [-0.4, 0.3], [0.8, 1.0]]  # logits, means, log-scales
  head.output_projection.kernel.assign(tf.zeros([4, 6]))
  head.output_projection.bias.assign(np.reshape(components, -1))
  features = tf.zeros([40_000, 3])
  samples = head.sample(features, gumbel_noise(0, [40_000, *head.noise_shape])).numpy()[:, 0]
  values = np.arange(num_values)
  log_prob = head.log_prob(tf.repeat(head(tf.zeros([1, 3])), num_values, axis=0), tf.constant(values[:, np.newaxis]))
  cumulative = np.cumsum(np.exp(log_prob))
  np.testing.assert_allclose(cumulative[-1], 1, rtol=1e-3)
  for share in (0.1, 0.3, 0.5, 0.7, 0.9):
    value = values[np.searchsorted(cumulative, share)]
    np.testing.assert_allclose(np.mean(samples <= value), cumulative[value], atol=0.01)


def test_it_learns_a_sequence_and_survives_saving(tmp_path, rng):
  model, _ = wavenet(rng=rng, head=CategoricalHead(5, 1, hidden_units=16), ordinal=False, num_steps=20)
  x = ((np.arange(20)[np.newaxis] + np.arange(5)[:, np.newaxis]) % 5)[..., np.newaxis].astype(np.int32)
  model.compile(keras.optimizers.Adam(0.01))
  model.fit(tf.data.Dataset.from_tensors(((x, None),)).repeat(200), verbose=0)
  assert -np.mean(model.log_prob(x)) / 19 < np.log(5) / 19 + 0.05  # only the first value is open
  model.save(tmp_path / "model.keras")
  again = keras.saving.load_model(tmp_path / "model.keras", compile=False)
  np.testing.assert_allclose(again.log_prob(x), model.log_prob(x), rtol=1e-6)


def test_a_condition_that_does_not_suit_is_refused(rng):
  model, given = wavenet("local", rng=rng)
  x = np.zeros([2, 12, 2], np.int32)
  with pytest.raises(ValueError, match="is conditioned on 'local', but the condition given has nothing"):
    model((x, None))
  with pytest.raises(ValueError, match="is conditioned on 'local', but the condition given has 'local' and 'speaker'"):
    model((x, {**given, "speaker": tf.constant([0, 1])}))
  with pytest.raises(ValueError, match=r"'local' of .* must have the shape \(None, None, 3\), but has \(2, 3\)"):
    model.log_prob(x, {"local": tf.zeros([2, 3])})
  with pytest.raises(ValueError, match=r"must have the shape \(None, None, 3\), but has \(2, 4, 1\)"):
    model.log_prob(x, {"local": tf.zeros([2, 4, 1])})
  with pytest.raises(ValueError, match="samples sequences: give num_steps"):
    noise_shape(model, 2)
  with pytest.raises(ValueError, match="dilation_rates"):
    WaveNet(CategoricalHead(4), dilation_rates=())


@pytest.mark.parametrize("condition", CONDITIONS)
def test_models_are_exported_after_fit(condition, tmp_path, rng):
  model, given = wavenet(condition, rng=rng)
  given = given and {key: tf.cast(x, "int32" if key == "speaker" else "float32") for key, x in given.items()}
  x = tf.constant(rng.integers(0, 6, (2, 12, 2)), tf.int32)
  inputs = (x, given) if given else x
  model.compile("sgd")
  model.fit(tf.data.Dataset.from_tensors((inputs,)), verbose=0)
  model.export(tmp_path / "exported", verbose=False)
  loaded = tf.saved_model.load(str(tmp_path / "exported"))
  served = loaded.serve(inputs)
  np.testing.assert_allclose(served, model(inputs), atol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("head_class", [CategoricalHead, LogisticMixtureHead])
@pytest.mark.parametrize("wrong", [-1, 6])
def test_values_out_of_range_are_refused(jit_compile, head_class, wrong, rng):
  model, _ = wavenet(rng=rng, head=head_class(6, 2, hidden_units=4), rates=(1, 2))
  model.compile("sgd", jit_compile=jit_compile)
  x = rng.integers(0, 6, (4, 12, 2)).astype(np.int32)
  model.fit(x, verbose=0)
  x[1, 2, 0] = wrong
  if head_class is LogisticMixtureHead or jit_compile:  # without XLA the CPU's look-up of embeddings says so first
    with pytest.raises(ValueError, match=r"25.0% of the examples for .* outside 0\.\.5"):
      model.fit(x, verbose=0)
  with pytest.raises(ValueError, match=r"Values of .* must be in 0\.\.5"):
    model.log_prob(x)
  with pytest.raises(ValueError, match=r"Values of .* must be in 0\.\.5"):
    model.head.log_prob(model.head(tf.zeros([1, 16]), tf.zeros([1, 2], tf.int32)), [[0, wrong]])


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("ordinal", [False, True])
@pytest.mark.parametrize("head_class", [CategoricalHead, LogisticMixtureHead])
@pytest.mark.parametrize("wrong", [-1, 6, 2**31 - 1])
def test_in_a_graph_an_example_out_of_range_has_the_log_prob_nan(wrong, head_class, ordinal, jit_compile, rng):
  head = head_class(6, 2, hidden_units=4)
  model, given = wavenet("speaker", batch_size=4, rng=rng, head=head, rates=(1, 2), ordinal=ordinal)
  x = rng.integers(0, 6, (4, 12, 2)).astype(np.int32)
  expected = model.log_prob(x, given).numpy()
  speaker = given["speaker"].numpy()
  x[1, 2, 0], speaker[2], expected[1:3] = wrong, 4, np.nan
  log_prob = tf.function(model.log_prob, jit_compile=jit_compile)
  np.testing.assert_allclose(log_prob(x, {"speaker": speaker}), expected, rtol=1e-5)


def test_speakers_out_of_range_are_refused(rng):
  model, _ = wavenet("speaker", rng=rng)
  with pytest.raises(ValueError, match=r"the condition 'speaker' of .* must be in 0\.\.3"):
    model.log_prob(np.zeros([1, 12, 2], np.int32), {"speaker": np.array([4])})


def test_the_levels_of_the_bands_are_saved_with_the_model(tmp_path, rng):
  audio_values = AudioValues(2, 256)
  audio_values.levels.assign([0.5, 0.25])
  arguments = {"channels": 4, "dilation_rates": (1, 2)}
  model = WaveNet(CategoricalHead(256, 2, hidden_units=8), audio_values=audio_values, **arguments)
  model.save(tmp_path / "model.keras")
  loaded = keras.saving.load_model(tmp_path / "model.keras")
  np.testing.assert_array_equal(loaded.audio_values.levels, [0.5, 0.25])
  audio = rng.uniform(-0.1, 0.1, (2, 64)).astype(np.float32)
  np.testing.assert_array_equal(loaded.audio_values(audio), audio_values(audio))


def test_weights_saved_without_levels_leave_them_as_they_are(tmp_path):
  arguments = {"channels": 4, "dilation_rates": (1, 2)}
  WaveNet(CategoricalHead(256, 2, hidden_units=8), **arguments).save(tmp_path / "model.keras")
  model = WaveNet(CategoricalHead(256, 2, hidden_units=8), audio_values=AudioValues(2, 256), **arguments)
  model.audio_values.levels.assign([0.5, 0.25])
  model.load_weights(tmp_path / "model.keras")
  np.testing.assert_array_equal(model.audio_values.levels, [0.5, 0.25])
