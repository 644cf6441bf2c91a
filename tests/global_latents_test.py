import json
import shutil

import keras
import numpy as np
import pytest

from tests.tiny import config_of, tiny
from tfvq.errors import UserError
from tfvq.layers import ProductQuantizer, VectorQuantizer
from tfvq.models import VQVAE, AutoregressiveDecoder, PixelCNN, grid_decoder, grid_encoder
from tfvq.tasks import validate
from tfvq.tasks.stages import make_task, open_task, run_stages


@pytest.mark.parametrize("grid_shape", [(21, 21), (4, 4), (3, 6)])
def test_networks_of_grids_of_any_size(grid_shape):
  encoder = grid_encoder(16, grid_shape, embedding_dim=6, hidden_units=8)
  codes = np.zeros([2, *grid_shape], np.int32)
  assert encoder(codes).shape == (2, 6)
  assert grid_decoder(grid_shape, 6, num_channels=5, hidden_units=8)(encoder(codes)).shape == (2, *grid_shape, 5)


def test_two_latents_learn_which_pattern_a_grid_has(rng):
  """A grid is one of 16 random patterns: given 4 bits it is certain, without them it costs 4 / 36 bits a code."""
  patterns = rng.integers(0, 8, (16, 6, 6))
  network = grid_decoder((6, 6), 8, num_channels=8, hidden_units=16)
  pixelcnn = PixelCNN(8, (6, 6), filters=16, num_layers=2, hidden_units=32, condition_dim=8)
  quantizer = ProductQuantizer([VectorQuantizer(4, 4, decay=0.9, seed=seed) for seed in range(2)])
  encoder = grid_encoder(8, (6, 6), embedding_dim=8, hidden_units=16)
  model = VQVAE(encoder, quantizer, AutoregressiveDecoder(network, pixelcnn))
  model.adapt(patterns)
  model.compile(keras.optimizers.Adam(5e-3))
  model.fit(patterns[rng.integers(0, 16, 16 * 400)], batch_size=16, verbose=0)
  codes = model.encode(patterns)
  assert codes.shape == (16, 2)
  nats = -model.decoder.log_prob(patterns, quantizer.decode(codes)).numpy()
  assert nats.mean() / np.log(2) < 2.0, "less than without latents, 4 bits"


@pytest.fixture(scope="module")
def run_folder(frames_run, tmp_path_factory):
  folder = tmp_path_factory.mktemp("global_latents") / "run"
  run_stages(make_task(tiny("global_latents", frames_run.workdir.path), folder), "all")
  return folder


@pytest.mark.slow
def test_a_tiny_version_runs_through_every_stage(run_folder, frames_run):
  metrics = json.loads((run_folder / "metrics.json").read_text())
  assert metrics["bits_per_image"] == 9.0 and 0 <= metrics["layout_accuracy"] <= 1
  np.testing.assert_allclose(
    metrics["bits_saved_per_code"], metrics["prior_bits_per_code"] - metrics["bits_per_code_given_latents"]
  )
  assert 1 <= metrics["smallest_perplexity"] == min(metrics[f"perplexity_{latent}"] for latent in range(3)) <= 8
  assert "validation" in metrics
  report = (run_folder / "report.html").read_text()
  assert "and draws from their 9 bits" in report and "Training of the prior" in report
  task = open_task(run_folder)
  codes = frames_run.codes.splits["held_out"]["codes"]
  np.testing.assert_array_equal(task.codes.splits["held_out"]["codes"], task.autoencoder.encode(codes))
  with np.load(run_folder / "samples" / "samples.npz") as samples:
    images, latents = samples["images"], samples["latents"]
    drawn = samples["codes"]
  chosen = np.linspace(0, len(codes) - 1, 3).astype(int)
  np.testing.assert_array_equal(latents, task.codes.splits["held_out"]["codes"][chosen])
  originals = np.concatenate([batch["image"].numpy() for batch in frames_run.source.batches("held_out", 4)])
  np.testing.assert_array_equal(images[0], originals[chosen])
  assert images.shape == (4, 3, 16, 16, 3) and (drawn[0] != drawn[1]).any()


@pytest.mark.slow
def test_the_encoder_is_exported(run_folder, tmp_path):
  from export import tflite
  from export.exporter import export

  task = open_task(run_folder)
  export(task, tmp_path / "out", ("tflite",), ("none",))
  runner = tflite.Runner((tmp_path / "out" / "tflite" / "none" / "encoder.tflite").read_bytes())
  codes = task.first_stage.codes.splits["held_out"]["codes"]
  found = np.concatenate([runner(image_codes=codes[row : row + 1])["codes"] for row in range(len(codes))])
  np.testing.assert_array_equal(found, task.codes.splits["held_out"]["codes"])


def test_a_run_without_codes_of_images_is_refused(frames_run, speech_run_folder, tmp_path):
  with pytest.raises(UserError, match="is not the folder of a run"):
    run_stages(make_task(tiny("global_latents", tmp_path / "nothing"), tmp_path / "a"), "all")
  shutil.copytree(frames_run.workdir.path, tmp_path / "frames")
  (tmp_path / "frames" / "codes" / "done.json").unlink()
  for folder in (speech_run_folder, tmp_path / "frames"):
    with pytest.raises(UserError, match="has no codes of images: set config.data.workdir to a run of images"):
      run_stages(make_task(tiny("global_latents", folder), tmp_path / "b"), "all")
    shutil.rmtree(tmp_path / "b")


def test_codes_that_are_not_a_grid_are_refused(frames_run, tmp_path):
  shutil.copytree(frames_run.workdir.path, tmp_path / "frames")
  manifest = tmp_path / "frames" / "codes" / "manifest.json"
  facts = json.loads(manifest.read_text())
  facts["features"]["codes"]["shape"] = [4, 4, 2]
  manifest.write_text(json.dumps(facts))
  with pytest.raises(UserError, match=r"have the shape \[4, 4, 2\]; config.data.workdir must have codes \[H, W\]"):
    run_stages(make_task(tiny("global_latents", tmp_path / "frames"), tmp_path / "run"), "all")


def test_codes_of_another_first_stage_are_refused(frames_run, tmp_path):
  shutil.copytree(frames_run.workdir.path, tmp_path / "frames")
  config = tiny("global_latents", tmp_path / "frames")
  run_stages(make_task(config, tmp_path / "run"), "data")
  marker = tmp_path / "run" / "data" / "done.json"
  facts = json.loads(marker.read_text())
  facts["first_stage"][0] = "0" * 64
  marker.write_text(json.dumps(facts))
  with pytest.raises(UserError, match="was trained on other codes than .*: choose another --workdir"):
    run_stages(make_task(config, tmp_path / "run"), "autoencoder")


def test_the_prior_is_trained_like_the_decoder():
  config = config_of("global_latents")
  config.train.prior.steps = 1
  with pytest.raises(UserError, match="config.train.prior.steps is 1; it must be config.train.autoencoder.steps, 4000"):
    validate(config)
