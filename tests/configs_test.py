import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from tests.tiny import IMAGES, NAMES, WAVENETS, config_of, tiny
from tfvq.data.image_sources import ImageArrays, open_image_source
from tfvq.data.tfds_images import TfdsImages
from tfvq.errors import UserError
from tfvq.tasks.corpus_task import build_wavenet
from tfvq.training.stages import Run, run_stages
from tfvq.training.training import make_optimizer
from tfvq.training.validation import validate
from tfvq.training.workdir import Workdir


@pytest.fixture
def pictures(tmp_path, rng):
  folder = tmp_path / "pictures"
  folder.mkdir()
  for index in range(30):
    Image.fromarray(rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(folder / f"{index}.png")
  return folder


def run(config, tmp_path):
  workdir = Workdir(tmp_path / "run", config.to_dict())
  with tfds.testing.mock_data(num_examples=12):
    run_stages(Run(config, workdir, command=""), "all")
  return json.loads((tmp_path / "run" / "metrics.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("frames", "speech")])
def test_a_tiny_version_runs_through_every_stage(name, tmp_path, pictures):
  config = tiny(name, folder=pictures)
  config.train.prior.update({"steps": 20, "learning_rate": 1e-2})
  metrics = run(config, tmp_path)
  figure = {"pixelcnn": "bits_per_dim", **dict.fromkeys(WAVENETS, "bits_per_sample")}.get(name, "prior_bits_per_code")
  uniform_bits = metrics.get("uniform_bits_per_code", 8.0)
  assert 0.1 < metrics[figure] < uniform_bits - 0.01, "the prior learned nothing"
  assert (tmp_path / "run" / "report.html").exists()


def test_a_wavenet_learns_bands_at_the_levels_that_it_is_sampled_at(tmp_path):
  """Whichever comes first, the batches or the levels: a workdir that is opened again has the latter."""
  config = tiny("wavenet")
  made, opened = (Run(config, Workdir(tmp_path / "run", config.to_dict()), command="").task for _ in range(2))
  made.prepare_data()
  ((values, _),) = next(iter(made.prior_batches(None, 128, 0)))
  levels = np.array(opened.audio_values.levels)
  np.testing.assert_array_equal(made.audio_values.levels, levels)
  assert levels.max() < 1
  loudest = np.abs(values.numpy() - 127.5).max(axis=(0, 1))
  assert np.all(loudest > 100), loudest


@pytest.mark.slow
@pytest.mark.parametrize("bottleneck", ["vq", "gaussian", "vimco"])
def test_each_row_of_the_likelihood_table_gives_its_figure(bottleneck, tmp_path):
  """Between what independent random pixels cost at least, their entropy, and what they cost without a model."""
  config = tiny("cifar10")
  config.autoencoder.bottleneck = bottleneck
  config.train.autoencoder.update({"steps": 60, "learning_rate": 1e-2})
  bits_per_dim = run(config, tmp_path)["autoencoder_bits_per_dim"]
  with tfds.testing.mock_data(num_examples=12):
    (batch,) = TfdsImages("cifar10", "test", 16).batches("held_out", 12)
  shares = np.bincount(batch["image"].numpy().ravel(), minlength=256) / batch["image"].numpy().size
  entropy_bits = -np.sum(shares * np.log2(np.maximum(shares, 1e-9)))
  code_bits_per_dim = 4 * 4 * 2 * np.log2(16) / (16 * 16 * 3)
  assert entropy_bits < bits_per_dim < 8 + code_bits_per_dim


@pytest.mark.slow
@pytest.mark.parametrize("codebook_update", ["moving_average", "loss"])
@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_codebook_updates_and_precisions(codebook_update, precision, tmp_path):
  config = tiny("frames")
  config.autoencoder.codebook_update = codebook_update
  config.precision = precision
  config.train.autoencoder.update({"steps": 60, "learning_rate": 2e-2})
  psnr_db = run(config, tmp_path)["reconstruction_psnr_db"]
  with np.load(tmp_path / "run" / "data" / "held_out.npz") as arrays:
    grey_psnr_db = 10 * np.log10(255**2 / np.mean((arrays["image"] - 127.5) ** 2))
  assert psnr_db > grey_psnr_db + 2, "an untrained autoencoder gives grey"


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
  task = Run(config, Workdir(tmp_path, config.to_dict()), command="").task
  task.source = source_like(config)
  images = task.source.splits["train"]["image"][:2]
  sizes = {}
  values, manifest = images, None
  if "autoencoder" in config:
    model = task.build_autoencoder()
    fit_one_step(model, config.train.autoencoder, images)
    sizes["autoencoder"] = model.count_params()
    values = model.encode(images)
    manifest = {"num_embeddings": config.autoencoder.num_embeddings, "code_shape": values.shape[1:]}
  prior = task.build_prior(manifest)
  fit_one_step(
    prior, config.train.prior, ((values, np.zeros(2, np.int32)),) if config.prior.class_conditional else values
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


def test_tfds_images_are_cropped_resized_and_labelled():
  with tfds.testing.mock_data(num_examples=5):
    source = TfdsImages("imagenet2012", "validation", 16)
    assert source.image_shape == (16, 16, 3) and source.num_classes == 1000
    assert source.num_examples("held_out") == 5
    batches = list(source.batches("held_out", 2))
    assert [batch["image"].shape[0] for batch in batches] == [2, 2, 1]
    batch = next(iter(source.train(3, seed=0)))
    assert batch["image"].shape == (3, 16, 16, 3) and batch["image"].dtype == tf.uint8
    assert batch["label"].shape == (3,) and batch["label"].dtype == tf.int32
    assert source.examples("train", 2).shape == (2, 16, 16, 3)
    grey = TfdsImages("mnist", "test", 16)
    assert grey.image_shape == grey.examples("train", 1).shape[1:] == (16, 16, 1)
    with pytest.raises(UserError, match="vctk does not hold labelled images"):
      TfdsImages("vctk", "test", 16)


@pytest.fixture
def numbered_images(tmp_path):
  """A data set of TFDS: in "train" 40 images of 24x32 and in "test" 5, each with its number as its value."""
  features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(num_classes=7)}

  def examples(numbers):
    return [(number, {"image": np.full([24, 32, 3], number, np.uint8), "label": number % 7}) for number in numbers]

  tfds.dataset_builders.store_as_tfds_dataset(
    name="numbered",
    version="1.0.0",
    features=tfds.features.FeaturesDict(features),
    split_datasets={"train": examples(range(40)), "test": examples(range(40, 45))},
    data_dir=tmp_path,
  )
  return "numbered", "test", 8, str(tmp_path)


def numbers_in(batches):
  return np.concatenate([batch["image"].numpy()[:, 0, 0, 0] for batch in batches])


def test_validation_images_are_the_last_of_the_training_images(numbered_images):
  source = TfdsImages(*numbered_images, validation_percent=20)
  assert source.split_names == ("train", "validation", "held_out")
  found = {split: list(numbers_in(source.batches(split, 3))) for split in source.split_names}
  assert [len(found[split]) for split in found] == [source.num_examples(split) for split in found] == [32, 8, 5]
  assert sorted(found["train"] + found["validation"]) == list(range(40))
  assert sorted(set(numbers_in(source.train(8, seed=0).take(20)))) == sorted(found["train"])
  whole = TfdsImages(*numbered_images)
  assert whole.split_names == ("train", "held_out")
  assert list(numbers_in(whole.batches("train", 3))) == found["train"] + found["validation"]


def test_images_are_resized_before_they_are_shuffled(numbered_images, monkeypatch):
  """The shuffle's buffer holds thousands of images: of 8x8 pixels, not of whatever size the data set has."""
  shuffle, shuffled = tf.data.Dataset.shuffle, []

  def spy(dataset, *args, **kwargs):
    shuffled.append(dataset.element_spec)
    return shuffle(dataset, *args, **kwargs)

  monkeypatch.setattr(tf.data.Dataset, "shuffle", spy)
  source = TfdsImages(*numbered_images)
  orders = [numbers_in(source.train(8, seed=seed).take(10)) for seed in (1, 1, 2)]
  images = [spec["image"] for spec in shuffled if isinstance(spec, dict)]
  assert images and all(image.shape == (8, 8, 3) and image.dtype == tf.uint8 for image in images)
  np.testing.assert_array_equal(orders[0], orders[1])
  assert not np.array_equal(orders[0], orders[2])
  np.testing.assert_array_equal(np.bincount(np.concatenate(orders), minlength=40) > 0, np.ones(40, bool))


def test_images_that_are_not_8_bit_are_refused(tmp_path):
  features = {
    "image": tfds.features.Image(shape=(8, 8, 1), dtype=np.uint16),
    "label": tfds.features.ClassLabel(num_classes=2),
  }
  examples = [(0, {"image": np.zeros([8, 8, 1], np.uint16), "label": 0})]
  tfds.dataset_builders.store_as_tfds_dataset(
    name="deep",
    version="1.0.0",
    features=tfds.features.FeaturesDict(features),
    split_datasets={"train": examples, "test": examples},
    data_dir=tmp_path,
  )
  with pytest.raises(UserError, match="images of the data set deep are uint16, not uint8"):
    TfdsImages("deep", "test", 8, str(tmp_path))


def test_a_data_set_that_cannot_be_fetched_is_reported_in_a_sentence(tmp_path):
  with pytest.raises(UserError, match="data set nonesuch is not in"):
    TfdsImages("nonesuch", "test", 16, str(tmp_path))


def test_scenarios_are_classes(tmp_path):
  source = open_image_source(tiny("pixelcnn").data, tmp_path, seed=0)
  assert source.num_classes == 2
  np.testing.assert_array_equal(source.splits["train"]["label"], [0] * 8 + [1] * 8)
  again = open_image_source(tiny("pixelcnn").data, tmp_path, seed=0)
  np.testing.assert_array_equal(again.splits["train"]["image"], source.splits["train"]["image"])
  (tmp_path / "train.npz").write_bytes(b"broken")
  with pytest.raises(UserError, match=r"train\.npz is damaged"):
    open_image_source(tiny("pixelcnn").data, tmp_path, seed=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("variant", ["small", "paper"])
def test_every_config_is_valid_and_says_how_to_run_it(name, variant):
  validate(config_of(name, variant))
  doc = __import__(f"tfvq.configs.{name}", fromlist=["x"]).__doc__
  assert f"--config=tfvq/configs/{name}.py" in doc and "arXiv" in doc


@pytest.mark.parametrize(("name", "expected"), [("frames", "photos, tfds, vizdoom"), ("tts", "asterisk, espeak")])
def test_an_unknown_source_is_refused_before_anything_starts(name, expected):
  config = config_of(name, "small")
  config.data.source = "radio"
  with pytest.raises(UserError, match=f"config.data.source is 'radio'; choose one of {expected}"):
    validate(config)


@pytest.mark.parametrize(
  ("name", "changes", "sentence"),
  [
    ("tts", {"data.source": "asterisk"}, "config.phones needs a source whose phones are known: .* is asterisk"),
    ("tts", {"data.crop_samples": 8192}, "config.data.crop_samples is 8192; with config.phones it must be a multiple"),
    ("wavenet", {"prior.num_bands": 3}, "config.prior.num_bands is 3; it must divide both 160"),
  ],
)
def test_a_wavenet_hears_phones_where_it_is_to_and_they_are_known(name, changes, sentence):
  config = config_of(name, "small")
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=sentence):
    validate(config)


def test_a_wavenet_that_is_not_told_the_phones_ignores_them(tmp_path):
  config = tiny("wavenet")
  validate(config)
  task = Run(config, Workdir(tmp_path / "run", config.to_dict()), command="").task
  task.prepare_data()
  assert task.corpus.phones and not task.build_prior(None).condition_dim
  ((_, condition),) = next(iter(task.prior_batches(None, 4, 0)))
  assert set(condition) == {"speaker"}


@pytest.mark.parametrize(
  ("name", "changes", "sentence"),
  [
    ("speech", {"autoencoder.strides": (2, 0)}, r"config.autoencoder.strides is \(2, 0\); it must be positive"),
    ("speech", {"samples.temperature": (-0.4,)}, "config.samples.temperature is .*; it must be zero or more"),
    ("wavenet", {"samples.temperature": (float("nan"),)}, "config.samples.temperature is .*; it must be zero or more"),
    ("wavenet", {"prior.num_values": 1}, "config.prior.num_values is 1; it must be 2 or more"),
    ("frames", {"autoencoder.num_embeddings": 1}, "config.autoencoder.num_embeddings is 1; it must be 2 or more"),
    ("speech", {"autoencoder.num_embeddings": 1}, "config.autoencoder.num_embeddings is 1; it must be 2 or more"),
    (
      "cifar10",
      {"autoencoder.num_vimco_samples": 1},
      "config.autoencoder.num_vimco_samples is 1; it must be 2 or more",
    ),
    ("cifar10", {"data.validation_percent": 100}, "config.data.validation_percent is 100; it must be less than 100"),
    ("photos", {"data.validation_percent": 90}, "config.data.validation_percent is 90; it must be less than 90"),
    (
      "frames",
      {"data.num_validation_episodes": -1},
      "config.data.num_validation_episodes is -1; it must be zero or more",
    ),
    ("frames", {"seed": 2**32}, "config.seed is 4294967296; it must be less than 4294967296"),
    (
      "speech",
      {"train.prior.learning_rate": float("inf")},
      "config.train.prior.learning_rate is inf; it must be finite",
    ),
    (
      "speech",
      {"train.prior.initial_weights": "gone.keras"},
      "config.train.prior.initial_weights is 'gone.keras', and ",
    ),
    ("frames", {"autoencoder.num_embeddings": 2**17}, "it must be 65536 or less"),
  ],
)
def test_values_that_cannot_work_are_refused_before_anything_starts(name, changes, sentence):
  config = config_of(name, "small")
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=sentence):
    validate(config)


@pytest.mark.parametrize(
  ("name", "missing", "sentence"),
  [
    ("frames", ("autoencoder", "prior"), "config.autoencoder and config.prior are missing; set at least one of them"),
    ("frames", ("train.autoencoder",), "config.train.autoencoder is missing"),
    ("frames", ("train.prior",), "config.train.prior is missing"),
    ("pixelcnn", ("samples",), "config.samples is missing"),
    ("speech", ("prior",), "config.prior is missing"),
    ("speech", ("train.prior",), "config.train.prior is missing"),
    ("speech", ("train.unquantized",), "config.train.unquantized is missing"),
    ("speech", ("pruning",), "config.pruning is missing"),
    ("wavenet", ("train.prior",), "config.train.prior is missing"),
    ("wavenet", ("data",), "config.data is missing"),
  ],
)
def test_a_config_without_a_section_that_a_stage_reads_is_refused(name, missing, sentence):
  config = config_of(name)
  for section in missing:
    parent, _, key = section.rpartition(".")
    del (config[parent] if parent else config)[key]
  with pytest.raises(UserError, match=sentence):
    validate(config)


def test_a_speech_config_need_not_be_pruned(tmp_path):
  config = tiny("speech")
  del config.pruning, config.train.prune
  validate(config)
  run = Run(config, Workdir(tmp_path, config.to_dict()), command="")
  with pytest.raises(UserError, match="This system has no stage 'prune'"):
    run_stages(run, "prune")


def test_an_autoencoder_of_images_needs_no_prior():
  config = config_of("frames")
  del config.prior, config.train.prior
  validate(config)


def test_windows_of_codes_longer_than_all_recordings_are_refused_before_training(tmp_path):
  config = tiny("speech")
  config.prior.window_frames = 100_000
  run = Run(config, Workdir(tmp_path / "run", config.to_dict()), command="")
  with pytest.raises(
    UserError, match="No speaker has 100000 frames in the split 'train': lower config.prior.window_fra"
  ):
    run_stages(run, "data")


def test_batches_that_the_replicas_cannot_share_are_refused_before_the_first_stage(tmp_path, two_replicas, monkeypatch):
  monkeypatch.setattr("tfvq.training.stages.make_strategy", lambda name: two_replicas)
  config = tiny("frames")
  config.train.prior.batch_size = 3
  run = Run(config, Workdir(tmp_path, config.to_dict()), command="")
  with pytest.raises(UserError, match="2 replicas cannot share the batches of 3 of 'prior'"):
    run_stages(run, "all")
  assert not run.workdir.folder("data").exists()


def test_episodes_that_cannot_be_played_are_refused_before_any_is(tmp_path):
  for changes, sentence in (
    ({"unseen_scenario": "nowhere"}, "ViZDoom has no scenario 'nowhere'"),
    ({"held_out_tics_per_frame": 10}, "tics_per_frame is 10; it must be a multiple of 7"),
  ):
    data = tiny("frames").data
    data.update(changes)
    with pytest.raises(UserError, match=sentence):
      open_image_source(data, tmp_path, seed=0)
  assert not list(tmp_path.iterdir())


def test_a_prior_of_classes_needs_classes(tmp_path, pictures):
  config = tiny("photos", pictures)
  config.prior.class_conditional = True
  run = Run(config, Workdir(tmp_path / "run", config.to_dict()), command="")
  with pytest.raises(UserError, match="class_conditional needs classes, and .*source=photos have none"):
    run_stages(run, "data")


def test_spectra_are_perturbed_where_there_are_some():
  config = config_of("speech", "small")
  config.autoencoder.voice_perturbation = 0.25
  validate(config)
  config.autoencoder.encoder = "waveform"
  with pytest.raises(UserError, match="voice_perturbation changes spectra"):
    validate(config)


def test_an_optimiser_that_cannot_prune_is_refused_before_anything_starts():
  config = config_of("speech", "small")
  config.train.prune.optimizer = "muon"
  with pytest.raises(UserError, match="train.prune.optimizer is muon, which cannot prune"):
    validate(config)


def test_two_replicas_train_as_one(two_replicas, tmp_path):
  """The whole autoencoder under a strategy: the same codebook and losses as without one."""
  images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3)).astype(np.uint8)
  config = tiny("frames")
  results = []
  for strategy in (tf.distribute.get_strategy(), two_replicas):
    keras.utils.set_random_seed(0)
    task = Run(config, Workdir(tmp_path, config.to_dict()), command="").task
    task.source = ImageArrays({"train": {"image": images}})
    with strategy.scope():
      model = task.build_autoencoder()
      model.compile(keras.optimizers.SGD(0.05))
    history = model.fit(
      tf.data.Dataset.from_tensor_slices(images).batch(16), epochs=2, verbose=0, shuffle=False
    ).history
    results.append((history["loss"], model.quantizer.codebook.numpy()))
  np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-3)
  # Rounding may send a vector between two codes to the other one, which moves both a little.
  np.testing.assert_allclose(results[0][1], results[1][1], atol=0.02)
