import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfvq.configs import common
from tfvq.data.arrays import ArraySource
from tfvq.errors import UserError
from tfvq.ops.distributed import replica_loss
from tfvq.ops.matmul import as_factor
from tfvq.training.callbacks import read_curves, read_seconds
from tfvq.training.muon import ConvMuon
from tfvq.training.training import make_optimizer, train

ROOT = pathlib.Path(__file__).parent.parent


def settings(**changes):
  return common.training(
    **{"steps": 12, "batch_size": 4, "learning_rate": 0.01, "log_every_steps": 4, "checkpoint_seconds": 0.0, **changes}
  )


class Line(keras.Model):
  """y = w x, trained on y = 2 x."""

  def __init__(self, fail_at=None):
    super().__init__()
    self.dense = keras.layers.Dense(3)
    self.dense.build((None, 3))
    self.fail_at = fail_at
    self.built = True

  def call(self, x):
    return self.dense(x)

  def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
    loss = tf.reduce_mean(tf.square(y_pred - 2 * x))
    if self.fail_at is not None:
      loss += tf.where(self.optimizer.iterations >= self.fail_at, np.nan, 0.0)
    return replica_loss(loss, tf.zeros([]), tf.cast(tf.shape(x)[0], loss.dtype))


def fit(folder, settings, build=Line, strategy=None, **arguments):
  keras.utils.set_random_seed(0)
  source = ArraySource({"train": {"x": np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)}})
  return train(
    build,
    lambda model, batch_size, step: source.train(batch_size, 0, step).map(lambda batch: batch["x"]),
    settings,
    folder,
    title="line",
    strategy=strategy or tf.distribute.get_strategy(),
    **arguments,
  )


class Interrupted(Exception):
  pass


def interrupted_fit(folder, settings, step):
  """Ends a run at a step, as if it were killed."""

  def build():
    model = Line()
    train_step = model.train_step

    def counted(data):
      tf.py_function(lambda: interrupt(int(model.optimizer.iterations)), [], [])
      return train_step(data)

    def interrupt(done):
      if done >= step:
        raise Interrupted

    model.train_step = counted
    return model

  with pytest.raises(Exception, match="Interrupted"):
    fit(folder, settings, build)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("step", [1, 6])
def test_an_interrupted_run_ends_as_one_that_was_not(optimizer, step, tmp_path):
  chosen = settings(optimizer=optimizer)
  whole, _ = fit(tmp_path / "whole", chosen)
  interrupted_fit(tmp_path / "parts", chosen, step)
  resumed, _ = fit(tmp_path / "parts", chosen)
  for a, b in zip(
    whole.weights + whole.optimizer.variables, resumed.weights + resumed.optimizer.variables, strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=a.path)
  curves = [[row["step"] for row in read_curves(tmp_path / part / "curves.csv")] for part in ("whole", "parts")]
  assert curves == [[4, 8, 12], [4, 8, 12]]


@pytest.mark.parametrize("bfloat16_products", [False, True])
def test_products_are_of_the_chosen_precision_in_training_only(bfloat16_products, tmp_path):
  seen = []

  class Product(Line):
    def call(self, x):
      seen.append(as_factor(x).dtype)
      return super().call(x)

  model, _ = fit(tmp_path, settings(bfloat16_products=bfloat16_products), build=Product)
  assert seen[-1] == (tf.bfloat16 if bfloat16_products else tf.float32)
  model(tf.zeros([1, 3]))
  assert seen[-1] == tf.float32


def test_replicas_learn_and_go_on_from_a_checkpoint(two_replicas, tmp_path):
  for steps in (100, 200):
    chosen = settings(schedule="constant", learning_rate=0.05, steps=steps, log_every_steps=50, checkpoint_seconds=60.0)
    model, _ = fit(tmp_path, chosen, strategy=two_replicas)
  assert [row["step"] for row in read_curves(tmp_path / "curves.csv")] == [50, 100, 150, 200]
  np.testing.assert_allclose(np.array(model.dense.kernel), 2 * np.eye(3), atol=0.05)


def test_a_batch_that_replicas_cannot_share_is_refused(two_replicas, tmp_path):
  with pytest.raises(
    UserError, match="2 replicas cannot share the batches of 5 of 'line': set its batch_size to a mult"
  ):
    fit(tmp_path, settings(batch_size=5), strategy=two_replicas)


def test_finished_training_is_not_repeated(tmp_path):
  first, seconds = fit(tmp_path, settings())
  written = (tmp_path / "checkpoint.keras").stat().st_mtime_ns
  again, seconds_again = fit(tmp_path, settings())
  np.testing.assert_array_equal(first.dense.kernel, again.dense.kernel)
  assert (tmp_path / "checkpoint.keras").stat().st_mtime_ns == written
  assert seconds_again == seconds


def test_prepare_runs_before_the_first_step_only(tmp_path):
  prepared = []

  def prepare(model, train_part):
    prepared.append(model)

  interrupted_fit(tmp_path, settings(), 6)
  fit(tmp_path, settings(), prepare=prepare)
  assert not prepared
  model, _ = fit(tmp_path / "new", settings(), prepare=prepare)
  assert prepared == [model] and int(model.optimizer.iterations) == 12


def test_a_part_is_trained_first_in_its_own_folder_and_once(tmp_path):
  kernels = []

  def prepare(model, train_part):
    train_part("first", model, settings(steps=3, log_every_steps=1))
    kernels.append(np.array(model.dense.kernel))

  model, seconds = fit(tmp_path, settings(), prepare=prepare)
  alone, _ = fit(tmp_path.with_name("alone"), settings(steps=3, log_every_steps=1))
  np.testing.assert_array_equal(kernels[0], alone.dense.kernel)
  assert [row["step"] for row in read_curves(tmp_path / "first" / "curves.csv")] == [1, 2, 3]
  assert int(model.optimizer.iterations) == 12 and np.any(kernels[0] != model.dense.kernel)
  assert seconds == sum(read_seconds(folder / "curves.csv") for folder in (tmp_path, tmp_path / "first"))
  # Stopped after the part and before the first checkpoint: the part is loaded, not trained.
  written = (tmp_path / "first" / "checkpoint.keras").stat().st_mtime_ns
  (tmp_path / "checkpoint.keras").unlink()
  fit(tmp_path, settings(), prepare=prepare)
  np.testing.assert_array_equal(kernels[0], kernels[1])
  assert (tmp_path / "first" / "checkpoint.keras").stat().st_mtime_ns == written


def test_initial_weights_are_where_training_starts(tmp_path):
  first, _ = fit(tmp_path / "first", settings())
  weights = str(tmp_path / "first" / "checkpoint.keras")
  again = settings(initial_weights=weights, steps=1, learning_rate=1e-9)
  prepared = []
  second, _ = fit(tmp_path / "second", again, prepare=lambda model, train_part: prepared.append(model))
  np.testing.assert_allclose(second.dense.kernel, first.dense.kernel, atol=1e-6)
  assert int(second.optimizer.iterations) == 1 and not prepared
  with pytest.raises(UserError, match="broken.keras is damaged"):
    (tmp_path / "broken.keras").write_bytes(b"no zip file")
    fit(tmp_path / "third", settings(initial_weights=str(tmp_path / "broken.keras")))


def test_loss_that_is_not_finite_ends_training(tmp_path):
  with pytest.raises(UserError, match=r"nan at step 8, learning rate .*checkpoint\.keras; lower the learning rate"):
    fit(tmp_path, settings(), lambda: Line(fail_at=7))
  model = Line()
  model.compile(make_optimizer(settings()))
  model.optimizer.build(model.trainable_variables)
  model.load_weights(tmp_path / "checkpoint.keras")
  assert int(model.optimizer.iterations) == 7 and np.isfinite(model.dense.kernel).all()


def test_a_damaged_checkpoint_is_reported_in_a_sentence(tmp_path):
  fit(tmp_path, settings(steps=2))
  path = tmp_path / "checkpoint.keras"
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(UserError, match=r"checkpoint\.keras is damaged"):
    fit(tmp_path, settings(steps=4))


def test_learning_rate_warms_up_and_decays():
  chosen = settings(steps=1000, learning_rate=0.5, warmup_steps=100)
  schedule = make_optimizer(chosen)._learning_rate
  rates = [float(schedule(step)) for step in (0, 50, 100, 550, 1000)]
  np.testing.assert_allclose(rates, [0.005, 0.2525, 0.5, 0.25125, 0.0025], rtol=1e-3)
  constant = make_optimizer(settings(schedule="constant", learning_rate=0.5))
  assert float(constant.learning_rate) == 0.5


def test_muon_updates_of_kernels_are_near_orthogonal(rng):
  kernel = keras.Variable(np.zeros([3, 3, 4, 8], np.float32), name="kernel")
  optimizer = ConvMuon(1.0, rms_rate=None, weight_decay=0.0, momentum=0.0)
  optimizer.apply([tf.constant(rng.normal(size=kernel.shape).astype(np.float32))], [kernel])
  singular_values = np.linalg.svd(kernel.numpy().reshape(36, 8), compute_uv=False)
  assert singular_values.min() > 0.6 and singular_values.max() < 1.3
