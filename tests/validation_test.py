import numpy as np
import pytest
from PIL import Image

from tests.tiny import NAMES, WAVENETS, config_of, tiny
from tfvq.data.image_sources import open_image_source
from tfvq.errors import UserError
from tfvq.tasks import validate
from tfvq.tasks.stages import make_task, run_stages


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
    ("speech", {"autoencoder.strides": (2, 0)}, r"config.autoencoder.strides is \(2, 0\); it must be positive"),
    ("speech", {"samples.temperature": (-0.4,)}, "config.samples.temperature is .*; it must be zero or more"),
    ("wavenet", {"samples.temperature": (float("nan"),)}, "config.samples.temperature is .*; it must be zero or more"),
    ("wavenet", {"prior.num_values": 1}, "config.prior.num_values is 1; it must be 2 or more"),
    (
      "frames",
      {"autoencoder.quantizer.num_embeddings": 1},
      "quantizer.num_embeddings is 1; it must be 2 or more",
    ),
    (
      "speech",
      {"autoencoder.quantizer.num_embeddings": 1},
      "quantizer.num_embeddings is 1; it must be 2 or more",
    ),
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
    ("frames", {"autoencoder.quantizer.num_embeddings": 2**17}, "it must be less than 65537"),
    ("frames", {"autoencoder.quantizer.kind": "sieve"}, "quantizer.kind is 'sieve'; choose one of vector, residual"),
    (
      "speech",
      {"autoencoder.quantizer.kind": "product", "autoencoder.quantizer.num_groups": 5},
      "num_groups=5 does not divide the 64 dimensions",
    ),
    (
      "frames",
      {"autoencoder.quantizer.kind": "finite_scalar", "autoencoder.quantizer.levels": (64, 64, 64)},
      "The codes of config.autoencoder.quantizer have 262144 values; at most 65536 can be stored",
    ),
    (
      "frames",
      {"autoencoder.quantizer.kind": "residual", "autoencoder.quantizer.level_dropout": 2.0},
      r"config.autoencoder.quantizer cannot work: dropout must lie in \[0, 1\]",
    ),
    ("tts", {"data.source": "asterisk"}, "config.phones needs a source whose phones are known: .* is asterisk"),
    ("tts", {"data.crop_samples": 8192}, "config.data.crop_samples is 8192; with config.phones it must be a multiple"),
    (
      "wavenet",
      {"prior.num_bands": 3},
      "config.prior.num_bands is 3; it must divide config.data.crop_samples, which is 8192",
    ),
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
    ("piano", ("data.sample_rate_hz",), "config.data.sample_rate_hz is missing"),
  ],
)
def test_a_config_without_a_section_that_a_stage_reads_is_refused(name, missing, sentence):
  config = config_of(name)
  for section in missing:
    parent, _, key = section.rpartition(".")
    del (config[parent] if parent else config)[key]
  with pytest.raises(UserError, match=sentence):
    validate(config)


@pytest.mark.parametrize("name", ["speech", *WAVENETS])
def test_sample_rates_are_multiples_of_100_from_8_to_48_khz(name):
  config = config_of(name)
  config.prior.num_bands = 1
  config.samples.temperature = (1.0,)
  if name == "speech":
    config.autoencoder.decoder.num_bands = 1

  for rate_hz in (8000, 12_800, 44_100):
    config.data.sample_rate_hz, config.data.crop_samples = rate_hz, 128 * rate_hz // 100
    validate(config)
  for rate_hz in (-16_000, 7900, 11_025, 22_050, 48_100):
    config.data.sample_rate_hz = rate_hz
    sentence = f"^config.data.sample_rate_hz is {rate_hz}; choose a multiple of 100 from 8000 to 48000.$"
    with pytest.raises(UserError, match=sentence):
      validate(config)


def test_a_speech_config_need_not_be_pruned(tmp_path):
  config = tiny("speech")
  del config.pruning, config.train.prune
  validate(config)
  run = make_task(config, tmp_path)
  with pytest.raises(UserError, match="This system has no stage 'prune'"):
    run_stages(run, "prune")


def test_an_autoencoder_of_images_needs_no_prior():
  config = config_of("frames")
  del config.prior, config.train.prior
  validate(config)


def test_windows_of_codes_longer_than_all_recordings_are_refused_before_training(tmp_path):
  config = tiny("speech")
  config.prior.window_frames = 100_000
  run = make_task(config, tmp_path / "run")
  with pytest.raises(
    UserError, match="No speaker has 100000 frames in the split 'train': lower config.prior.window_fra"
  ):
    run_stages(run, "data")


def test_batches_that_the_replicas_cannot_share_are_refused_before_the_first_stage(tmp_path, two_replicas, monkeypatch):
  monkeypatch.setattr("tfvq.tasks.task.make_strategy", lambda name: two_replicas)
  config = tiny("frames")
  config.train.prior.batch_size = 3
  run = make_task(config, tmp_path)
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


def test_a_prior_of_classes_needs_classes(tmp_path, rng):
  folder = tmp_path / "pictures"
  folder.mkdir()
  for index in range(30):
    Image.fromarray(rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(folder / f"{index}.png")
  config = tiny("photos", folder)
  config.prior.class_conditional = True
  run = make_task(config, tmp_path / "run")
  with pytest.raises(UserError, match="class_conditional needs classes, and .*source=photos have none"):
    run_stages(run, "data")


def test_voice_perturbation_needs_a_log_mel_encoder():
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
