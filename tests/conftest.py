import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np
import pytest
import tensorflow as tf

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
