import json
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvq.errors import UserError
from tfvq.evaluation import metrics
from tfvq.tasks.stages import make_task, run_stages
from tfvq.training.workdir import Workdir

ROOT = pathlib.Path(__file__).parent.parent


def test_a_run_leaves_metrics_and_a_report(frames_run):
  folder = frames_run.workdir.path
  metrics = json.loads((folder / "metrics.json").read_text())
  names = {
    "reconstruction_psnr_db",
    "codes_used_fraction",
    "perplexity",
    "prior_bits_per_code",
    "order0_bits_per_code",
    "xz_bits_per_code",
    "uniform_bits_per_code",
  }
  assert names <= set(metrics) and names == set(metrics["validation"]) == set(metrics["unseen_map"])
  assert list(metrics["seconds"]) == ["data", "autoencoder", "codes", "prior", "samples", "evaluation"]
  assert metrics["uniform_bits_per_code"] == 4
  report = (folder / "report.html").read_text()
  assert "python train_main.py --config=frames" in report and "bits per code, prior" in report
  assert not re.search(r'(src|href)="(?!data:)', report), "the report needs another file"
  assert "<tr><th></th><th>held out</th><th>validation</th><th>unseen map</th></tr>" in report
  titles = re.findall(r'<h2>(.*?)</h2>\s*<img src="data:image/png', report)
  pairs = "Originals (above) and reconstructions (below), "
  assert {pairs + split for split in ("validation", "held out", "unseen map")} < set(titles)
  assert {"Samples from the prior, temperature 1.0", "Training of the autoencoder", "Training of the prior"} < set(
    titles
  )


@pytest.mark.parametrize("split", ["validation", "held_out", "unseen_map"])
def test_metrics_are_those_of_the_models_in_the_workdir(split, frames_run):
  metrics = json.loads((frames_run.workdir.path / "metrics.json").read_text())
  metrics = metrics.get(split, metrics)  # the held-out figures are at the top
  images = frames_run.source.splits[split]["image"]
  model = keras.saving.load_model(frames_run.workdir.folder("autoencoder") / "checkpoint.keras", compile=False)
  error = images.astype(np.float64) - np.clip(np.round(model.reconstruct(images)), 0, 255)
  np.testing.assert_allclose(metrics["reconstruction_psnr_db"], 10 * np.log10(255**2 / np.mean(error**2)), rtol=1e-3)
  codes = frames_run.codes.splits[split]["codes"]
  np.testing.assert_array_equal(codes, model.encode(images))
  prior = keras.saving.load_model(frames_run.workdir.folder("prior") / "checkpoint.keras", compile=False)
  bits = -float(tf.reduce_sum(prior.log_prob(codes))) / codes.size / np.log(2)
  np.testing.assert_allclose(metrics["prior_bits_per_code"], bits, rtol=1e-4)


def test_a_finished_run_is_skipped(frames_run, capsys):
  before = {path: path.stat().st_mtime_ns for path in frames_run.workdir.path.rglob("*")}
  run_stages(make_task(frames_run.config, frames_run.workdir.path), "all")
  assert {path: path.stat().st_mtime_ns for path in frames_run.workdir.path.rglob("*")} == before
  output = capsys.readouterr().out
  assert output.count("done already") == 6 and "report.html" in output


def test_the_readmes_lines_load_a_checkpoint(frames_run):
  readme = (ROOT / "README.md").read_text()
  lines = re.search(r"    import keras, tfvq.models\n(?:    .*\n)+", readme)[0].replace("    ", "")
  lines = lines.replace("runs/frames", str(frames_run.workdir.path))
  code = f"import numpy\nimages = numpy.zeros([2, 16, 16, 3], 'uint8')\n{lines}\nprint(codes.shape)"
  # In a new process, where no class is registered but those that the lines import.
  output = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
  assert output.stdout.strip() == "(2, 4, 4)", output.stderr


def test_samples_are_the_decoded_draws_of_the_prior(frames_run):
  with np.load(frames_run.workdir.folder("samples") / "samples.npz") as samples:
    values, images = samples["values"], samples["images"]
  assert values.shape == (3, 4, 4) and images.shape == (3, 16, 16, 3)
  np.testing.assert_array_equal(images, metrics.to_uint8(frames_run.autoencoder.decode(values)))


def test_the_prior_refuses_codes_of_another_autoencoder(frames_run, tmp_path):
  shutil.copytree(frames_run.workdir.path, tmp_path / "run")
  workdir = Workdir(tmp_path / "run", frames_run.config.to_dict())
  for stage in ("prior", "samples", "evaluation"):
    shutil.rmtree(workdir.folder(stage))
  with open(workdir.folder("autoencoder") / "checkpoint.keras", "ab") as file:
    file.write(b"changed")
  with pytest.raises(UserError, match="another autoencoder"):
    run_stages(make_task(frames_run.config, workdir.path), "prior")


def test_a_workdir_of_another_config_is_refused_with_the_fields_named(tmp_path):
  Workdir(tmp_path, {"a": {"b": 1, "c": (2, 3)}, "d": 4})
  Workdir(tmp_path, {"a": {"b": 1, "c": (2, 3)}, "d": 4})
  with pytest.raises(UserError, match=r"\(a\.b was 1 and is 2, d was 4 and is 5\)"):
    Workdir(tmp_path, {"a": {"b": 2, "c": (2, 3)}, "d": 5})


def test_fields_of_stages_that_have_not_begun_may_change(tmp_path):
  config = {
    "task": "speech",
    "pruning": {"method": "channels"},
    "train": {"prune": {"steps": 1}, "prior": {"steps": 1}},
  }
  Workdir(tmp_path, config)
  config["pruning"]["method"] = "blocks"
  config["train"]["prune"]["steps"] = 2
  workdir = Workdir(tmp_path, config)
  assert json.loads((tmp_path / "config.json").read_text()) == config
  with workdir.running("prune"):
    pass
  config["pruning"]["method"] = "layers"
  with pytest.raises(UserError, match="pruning.method was blocks and is layers"):
    Workdir(tmp_path, config)


def test_a_stage_does_not_run_again_if_later_stages_used_its_output(frames_run, tmp_path):
  shutil.copytree(frames_run.workdir.path, tmp_path / "run")
  workdir = Workdir(tmp_path / "run", frames_run.config.to_dict())
  shutil.rmtree(workdir.folder("autoencoder"))
  with pytest.raises(UserError, match="earlier `autoencoder`: delete codes, prior, samples, evaluation there"):
    run_stages(make_task(frames_run.config, workdir.path), "all")
  assert not workdir.folder("autoencoder").exists()


def test_files_of_a_killed_stage_are_removed(tmp_path):
  workdir = Workdir(tmp_path, {})
  partial = workdir.folder("samples") / ".partial-1-00-x.wav"
  partial.parent.mkdir()
  partial.write_bytes(b"half")
  with workdir.running("samples"):
    assert not partial.exists()
