from tfvq.startup import set_environment

set_environment()

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.tiny import tiny
from tfvq.training.stages import Run, open_run, run_stages
from tfvq.training.workdir import Workdir

# Two logical devices, so that strategies with two replicas can be tested on any machine.
tf.config.set_logical_device_configuration(
  tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(autouse=True)
def seeded():
  keras.utils.set_random_seed(0)
  yield
  keras.config.set_dtype_policy("float32")


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.fixture(scope="session")
def two_replicas():
  """One strategy for all tests: a second one in the same process would take up the first one's collective keys."""
  return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def frames_run(tmp_path_factory):
  """A tiny run of the frames system, all stages done."""
  return tiny_run("frames", tmp_path_factory)


@pytest.fixture(scope="session")
def speech_run_folder(tmp_path_factory):
  """The folder of a tiny run of the speech system, all stages done."""
  return tiny_run("speech", tmp_path_factory).workdir.path


@pytest.fixture(scope="session")
def exported_frames(frames_run, tmp_path_factory):
  from export import tflite  # takes seconds to import: only where it is used
  from export.exporter import export

  folder = tmp_path_factory.mktemp("export") / "frames"
  export(frames_run, folder, ("tflite", "saved_model", "onnx"), tflite.MODES)
  return folder


@pytest.fixture(scope="session")
def exported_speech(speech_run_folder, tmp_path_factory):
  from export import tflite  # takes seconds to import: only where it is used
  from export.exporter import export

  folder = tmp_path_factory.mktemp("export") / "speech"
  export(open_run(speech_run_folder), folder, ("tflite", "saved_model", "onnx"), tflite.MODES)
  return folder


def tiny_run(name, tmp_path_factory):
  """Runs all stages of a tiny version of a system."""
  keras.utils.set_random_seed(0)
  config = tiny(name)
  workdir = Workdir(tmp_path_factory.mktemp(name), config.to_dict())
  run = Run(config, workdir, command=f"python train_main.py --config={name}")
  run_stages(run, "all")
  return run
