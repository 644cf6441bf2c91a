import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from export.exporter import export
from tests.tiny import IMAGES, NAMES, ON_OTHER_RUNS, WAVENETS, config_of, tiny
from tfvq.data.image_sources import ImageArrays, open_image_source
from tfvq.data.tfds_images import TfdsImages
from tfvq.errors import UserError
from tfvq.tasks import validate
from tfvq.tasks.corpus_task import build_wavenet
from tfvq.tasks.stages import make_task, open_task, run_stages
from tfvq.training.training import make_optimizer


@pytest.fixture
def pictures(tmp_path, rng):
  folder = tmp_path / "pictures"
  folder.mkdir()
  for index in range(30):
    Image.fromarray(rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(folder / f"{index}.png")
  return folder


def run(config, tmp_path):
  with tfds.testing.mock_data(num_examples=12):
    run_stages(make_task(config, tmp_path / "run"), "all")
  return json.loads((tmp_path / "run" / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("frames", "speech", *ON_OTHER_RUNS)])
def test_a_tiny_version_runs_through_every_stage(name, tmp_path, pictures):
  config = tiny(name, folder=pictures)
  config.train.prior.update({"steps": 20, "learning_rate": 1e-2})
  metrics = run(config, tmp_path)
  figure = {"pixelcnn": "bits_per_dim", **dict.fromkeys(WAVENETS, "bits_per_sample")}.get(name, "prior_bits_per_code")
  uniform_bits = metrics.get("uniform_bits_per_code", 8.0)
  assert 0.1 < metrics[figure] < uniform_bits - 0.01, "the prior learned nothing"
  assert (tmp_path / "run" / "report.html").exists()


def test_a_wavenet_learns_bands_at_the_levels_that_it_is_sampled_at(tmp_path):
  """Batches may be made before the levels are measured or after, as in a workdir that is opened again."""
  config = tiny("wavenet")
  made, opened = (make_task(config, tmp_path / "run") for _ in range(2))
  made.prepare_data()
  ((values, _),) = next(iter(made.prior_batches(128, 0)))
  levels = np.array(opened.audio_values.levels)
  np.testing.assert_array_equal(made.audio_values.levels, levels)
  assert levels.max() < 1
  loudest = np.abs(values.numpy() - 127.5).max(axis=(0, 1))
  assert np.all(loudest > 100), loudest


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", ["vq", "gaussian", "vimco"])
def test_each_row_of_the_likelihood_table_is_measured(bottleneck, tmp_path):
  """The pixels are random: the bits lie between their entropy and those of a uniform distribution."""
  config = tiny("cifar10")
  config.autoencoder.bottleneck = bottleneck
  config.train.autoencoder.update({"steps": 60, "learning_rate": 1e-2})
  bits_per_dim = run(config, tmp_path)["autoencoder_bits_per_dim"]
  with tfds.testing.mock_data(num_examples=12):
    (batch,) = TfdsImages("cifar10", "test", 16).batches("held_out", 12)
  frequencies = np.bincount(batch["image"].numpy().ravel(), minlength=256) / batch["image"].numpy().size
  entropy_bits = -np.sum(frequencies * np.log2(np.maximum(frequencies, 1e-9)))
  code_bits_per_dim = 4 * 4 * 2 * np.log2(16) / (16 * 16 * 3)
  assert entropy_bits < bits_per_dim < 8 + code_bits_per_dim


@pytest.mark.slow
@pytest.mark.parametrize("codebook_update", ["moving_average", "loss"])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_codebook_updates_and_precisions(codebook_update, precision, tmp_path):
  config = tiny("frames")
  config.autoencoder.quantizer.codebook_update = codebook_update
  config.precision = precision
  config.train.autoencoder.update({"steps": 60, "learning_rate": 2e-2})
  psnr_db = run(config, tmp_path)["reconstruction_psnr_db"]
  with np.load(tmp_path / "run" / "data" / "held_out.npz") as arrays:
    grey_psnr_db = 10 * np.log10(255**2 / np.mean((arrays["image"] - 127.5) ** 2))
  assert psnr_db > grey_psnr_db + 2, "an untrained autoencoder gives grey"


QUANTIZERS = {
  "residual": {"num_levels": 2},
  "product": {"num_groups": 2},
  "finite_scalar": {"levels": (4, 4)},
  "lookup_free": {"num_bits": 4},
  "soft_to_hard": {"annealing_steps": 60},
}


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "kind"), [*(("frames", kind) for kind in QUANTIZERS), ("speech", "residual"), ("speech", "finite_scalar")]
)
def test_every_kind_of_quantiser_goes_through_every_stage_and_export(name, kind, tmp_path):
  config = tiny(name)
  config.autoencoder.quantizer.update({"kind": kind, **QUANTIZERS[kind]})
  validate(config)
  metrics = run(config, tmp_path)
  task = open_task(tmp_path / "run")
  quantizer = task.autoencoder.quantizer
  codes = task.codes.splits["held_out"]["codes"]
  assert codes.max() < quantizer.num_values == 16 and metrics["uniform_bits_per_code"] == 4
  assert metrics["perplexity"] > 1 and np.isfinite(metrics["prior_bits_per_code"])
  assert codes.shape[-1] == {"residual": 2, "product": 2}.get(kind, codes.shape[-1])
  export(task, tmp_path / "exported", ("tflite", "onnx", "saved_model"), ("none",))
  for file in json.loads((tmp_path / "exported" / "export.json").read_text())["files"]:
    for output, parity in file["parity"].items():
      assert parity.get("share_equal_of_sure", 1) == 1, (file["file"], output)
      assert parity.get("relative_rms_error", 0) < 1e-4 or name == "speech", (file["file"], output)


def source_like(config):
  """Two random images of a config's size, and its number of classes."""
  size = config.data.image_size
  images = np.random.default_rng(0).integers(0, 256, (4, size, size, 3)).astype(np.uint8)
  arrays = {"image": images, "label": np.zeros(4, np.int32)}
  return ImageArrays({"train": arrays, "held_out": arrays}, num_classes=10)


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGES)
def test_every_paper_config_of_images_builds_and_takes_a_step(name, tmp_path, capsys):
  config = config_of(name, "paper")
  validate(config)
  task = make_task(config, tmp_path)
  task.source = source_like(config)
  images = task.source.splits["train"]["image"][:2]
  sizes = {}
  values = images
  if "autoencoder" in config:
    model = task.build_autoencoder()
    fit_one_step(model, config.train.autoencoder, images)
    sizes["autoencoder"] = model.count_params()
    values = model.encode(images)
    codes = {"num_values": config.autoencoder.quantizer.num_embeddings, "shape": values.shape[1:]}
    task.manifest = {"features": {"codes": codes}}
  prior = task.build_prior()
  fit_one_step(
    prior,
    config.train.prior,
    ((values, {"label": np.zeros(2, np.int32)}),) if config.prior.class_conditional else values,
  )
  sizes["prior"] = prior.count_params()
  with capsys.disabled():
    print(f"\n{name}:paper parameters: " + ", ".join(f"{part} {number:,}" for part, number in sizes.items()))


@pytest.mark.slow
@pytest.mark.parametrize("name", WAVENETS)
def test_every_paper_config_of_a_wavenet_builds_and_takes_a_step(name, rng, capsys):
  config = config_of(name, "paper")
  arguments = {"wavenet": {"num_speakers": 109}, "piano": {}, "tts": {"condition_dim": 155}}[name]
  model = build_wavenet(config.prior, config.prior.num_values, config.prior.num_bands, **arguments)
  values = tf.constant(rng.integers(0, 256, (2, 320, 1)), tf.int32)
  local = tf.constant(rng.normal(size=(2, 2, 155)).astype(np.float32))
  condition = {"wavenet": {"speaker": tf.constant([0, 108])}, "piano": None, "tts": {"local": local}}[name]
  fit_one_step(model, config.train.prior, ((values, condition),))
  with capsys.disabled():
    print(f"\n{name}:paper parameters: {model.count_params():,}")


def fit_one_step(model, settings, x):
  model.compile(make_optimizer(settings))
  before = [weight.numpy() for weight in model.trainable_weights[:3]]
  history = model.fit(tf.data.Dataset.from_tensors(x), verbose=0, shuffle=False).history
  assert np.isfinite(history["loss"]).all()
  assert any(np.any(a != b.numpy()) for a, b in zip(before, model.trainable_weights[:3], strict=True))


def test_scenarios_are_classes(tmp_path):
  source = open_image_source(tiny("pixelcnn").data, tmp_path, seed=0)
  assert source.num_classes == 2
  np.testing.assert_array_equal(source.splits["train"]["label"], [0] * 8 + [1] * 8)
  again = open_image_source(tiny("pixelcnn").data, tmp_path, seed=0)
  np.testing.assert_array_equal(again.splits["train"]["image"], source.splits["train"]["image"])
  (tmp_path / "train.npz").write_bytes(b"broken")
  with pytest.raises(UserError, match=r"train\.npz is damaged"):
    open_image_source(tiny("pixelcnn").data, tmp_path, seed=0)


def test_a_wavenet_without_a_phone_condition_ignores_phones(tmp_path):
  config = tiny("wavenet")
  validate(config)
  task = make_task(config, tmp_path / "run")
  task.prepare_data()
  assert task.corpus.phones and not task.build_prior().condition_dim
  ((_, condition),) = next(iter(task.prior_batches(4, 0)))
  assert set(condition) == {"speaker"}


def test_two_replicas_train_as_one(two_replicas, tmp_path):
  """The whole autoencoder under a strategy: the same codebook and losses as without one."""
  images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3)).astype(np.uint8)
  config = tiny("frames")
  results = []
  for strategy in (tf.distribute.get_strategy(), two_replicas):
    keras.utils.set_random_seed(0)
    task = make_task(config, tmp_path)
    task.source = ImageArrays({"train": {"image": images}})
    with strategy.scope():
      model = task.build_autoencoder()
      model.compile(keras.optimizers.SGD(0.05))
    history = model.fit(
      tf.data.Dataset.from_tensor_slices(images).batch(16), epochs=2, verbose=0, shuffle=False
    ).history
    results.append((history["loss"], model.quantizer.codebook.numpy()))
  np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-3)
  # Rounding may change the code of a vector between two codes, which changes both codes a little.
  np.testing.assert_allclose(results[0][1], results[1][1], atol=0.02)
