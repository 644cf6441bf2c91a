import fcntl
import os

from tfvq.startup import set_environment

set_environment()

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.tiny import tiny
from tfvq.tasks.stages import make_task, open_task, run_stages

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
  """One strategy for all tests: a second one in the same process would use the same collective keys."""
  return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture(scope="session")
def frames_run(tmp_path_factory):
  """A tiny run of the frames system, all stages done."""
  return open_task(shared_folder("frames", tmp_path_factory, lambda folder: tiny_run("frames", folder)))


@pytest.fixture(scope="session")
def speech_run_folder(tmp_path_factory):
  """The folder of a tiny run of the speech system, all stages done."""
  return shared_folder("speech", tmp_path_factory, lambda folder: tiny_run("speech", folder))


@pytest.fixture(scope="session")
def exported_frames(frames_run, tmp_path_factory):
  return shared_folder("exported_frames", tmp_path_factory, lambda folder: export_all(frames_run, folder))


@pytest.fixture(scope="session")
def exported_speech(speech_run_folder, tmp_path_factory):
  return shared_folder(
    "exported_speech", tmp_path_factory, lambda folder: export_all(open_task(speech_run_folder), folder)
  )


@pytest.fixture(scope="session")
def codec_folder(speech_run_folder, tmp_path_factory):
  """The exported codec of a tiny run, in float32."""

  def make(folder):
    from export.exporter import export  # takes seconds to import: only where it is used

    export(open_task(speech_run_folder), folder, ("tflite",), ("none",))

  return shared_folder("exported_codec", tmp_path_factory, make) / "tflite" / "none"


def shared_folder(name, tmp_path_factory, make):
  """A read-only folder that is made once, by the first of pytest-xdist's workers that needs it."""
  root = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    root = root.parent  # shared by all workers
  folder, marker = root / name, root / f"{name}.done"
  with open(root / f"{name}.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not marker.exists():
      make(folder)
      marker.touch()
  return folder


def tiny_run(name, folder):
  """Runs all stages of a tiny version of a system."""
  keras.utils.set_random_seed(0)
  config = tiny(name)
  run_stages(make_task(config, folder, command=f"python train_main.py --config={name}"), "all")


def export_all(run, folder):
  """Exports a run in every format."""
  from export import tflite  # takes seconds to import: only where it is used
  from export.exporter import export

  export(run, folder, ("tflite", "saved_model", "onnx"), tflite.MODES)
