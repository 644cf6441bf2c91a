"""A new system is one file: it runs, reports and exports without changes in other files."""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from tfvq.errors import UserError
from tfvq.tasks import validate
from tfvq.tasks.stages import make_task, run_stages

ROOT = pathlib.Path(__file__).parent.parent

TOY = '''
import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict
from tfvq import models
from tfvq.configs import common
from tfvq.configs.rules import Rules
from tfvq.endpoints.endpoint import Endpoint, integers
from tfvq.evaluation.metrics import Metric, bits_per_value
from tfvq.evaluation.sections import Section
from tfvq.layers import CategoricalHead
from tfvq.tasks.prior_task import PriorTask


def get_config(variant=None):
  config = common.run_settings(f"{__file__}:CountingTask")
  config.data = ConfigDict({"length": 24})
  config.train.prior = common.training(steps=200, batch_size=16, learning_rate=1e-2)
  return config


class CountingTask(PriorTask):
  """Counts modulo four, from a random start."""

  rules = Rules(at_least={"data.length": 4})
  metrics = (Metric("bits_per_value", "Bits of a count", "bits"),)

  def counts(self, num):
    return (np.arange(self.config.data.length) + np.arange(num)[:, np.newaxis])[..., np.newaxis] % 4

  def prepare_data(self):
    return {"length": self.config.data.length}

  def build_prior(self):
    return models.WaveNet(CategoricalHead(4, hidden_units=8), 8, (1, 2), ordinal=False)

  def prior_batches(self, batch_size, step):
    return tf.data.Dataset.from_tensors(self.counts(batch_size)).repeat()

  def write_samples(self, folder):
    np.save(folder / "samples.npy", self.prior.predict(self.counts(2), verbose=0).argmax(axis=-1))

  def measure(self, split):
    return {"bits_per_value": bits_per_value(self.prior, [self.counts(4)]), "length": self.config.data.length}

  def report_sections(self):
    samples = np.load(self.workdir.folder("samples") / "samples.npy")
    return [Section("Predictions of the toy", columns=["counts"], rows=[[str(row.ravel())] for row in samples])]

  def device_endpoints(self):
    shape = (1, self.config.data.length, 1)
    examples = lambda split: ({"values": self.counts(4)[row : row + 1].astype(np.int32)} for row in range(4))
    log_prob = lambda values: {"log_prob": self.prior(values)}
    return [Endpoint("log_prob", log_prob, {"values": integers(*shape)}, self.prior, examples)]
'''


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
  path = tmp_path_factory.mktemp("toy") / "toy.py"
  path.write_text(TOY)
  return path


def run(*command):
  return subprocess.run(
    [sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=600
  )


def test_a_system_outside_of_the_package_runs_reports_and_exports(toy):
  workdir = toy.parent / "run"
  result = run("train_main.py", f"--config={toy}", f"--workdir={workdir}")
  assert result.returncode == 0, result.stderr
  metrics = json.loads((workdir / "metrics.json").read_text())
  assert 2 / 24 - 0.01 < metrics["bits_per_value"] < 0.3, "only the first count is uncertain"
  assert list(metrics["seconds"]) == ["data", "prior", "samples", "evaluation"]
  assert "Bits of a count" in result.stdout and f"{metrics['bits_per_value']:.2f} bits" in result.stdout
  report = (workdir / "report.html").read_text()
  for shown in ("Bits of a count", "<td>length</td>", "Predictions of the toy", "Training of the prior", str(toy)):
    assert shown in report, shown
  samples = np.load(workdir / "samples" / "samples.npy")
  np.testing.assert_array_equal(samples[:, 1:], ((np.arange(1, 24) + np.arange(2)[:, np.newaxis]) % 4)[..., np.newaxis])
  result = run("-m", "export.export_main", f"--workdir={workdir}", f"--out={toy.parent / 'out'}", "--quantize=none")
  assert result.returncode == 0, result.stderr
  files = json.loads((toy.parent / "out" / "export.json").read_text())["files"]
  assert [file["file"] for file in files] == ["tflite/none/log_prob.tflite", "onnx/log_prob.onnx"]
  assert all(file["parity"]["log_prob"]["relative_rms_error"] < 1e-5 for file in files)


def test_its_fields_are_listed_and_checked(toy):
  assert "--config.data.length=24" in run("train_main.py", f"--config={toy}", "--help").stdout
  result = run("train_main.py", f"--config={toy}", f"--workdir={toy.parent / 'wrong'}", "--config.data.lenght=5")
  assert result.returncode == 2 and "The config has no field 'lenght'" in result.stderr
  assert "Traceback" not in result.stderr and not (toy.parent / "wrong").exists()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.length": 3}, "config.data.length is 3; it must be 4 or more."),
    ({"data.length": 0}, "config.data.length is 0; it must be positive."),
    ({"task": "nothing"}, "config.task is 'nothing': name a class as module:Class or path/to/file.py:Class."),
    ({"task": "gone.py:Toy"}, "config.task is 'gone.py:Toy', which could not be imported"),
    ({"task": "json:Toy"}, "config.task is 'json:Toy', and json has no class Toy"),
  ],
)
def test_wrong_values_are_refused(changes, message, toy):
  config = load_config(toy)
  config.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=re.escape(message)):
    validate(config)


def load_config(path):
  """The config of a file."""
  spec = importlib.util.spec_from_file_location("toy", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def test_unknown_stages_are_refused(toy, tmp_path):
  task = make_task(load_config(toy), tmp_path)
  with pytest.raises(UserError, match="no stage 'codes'; choose one of all, data, prior, samples, evaluation"):
    run_stages(task, "codes")
