"""The base of all models: `fit`, `evaluate`, `predict` and `export`."""

import abc

import keras
import numpy as np
import tensorflow as tf

from tfvq.ops.distributed import num_replicas, share_of_loss


class LikelihoodModel(keras.Model, abc.ABC):
  """A model that minimises the mean of a loss over the examples of the global batch.

  The figures are the same for any number of replicas and for a last batch that they cannot share evenly. Metrics
  without data are left out of the results.

  Subclasses define `example_losses`, `is_flagged` with `check_flagged`, and `input_signature`.

  Args:
    **kwargs: As for `keras.Model`.
  """

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self._flagged = keras.metrics.Mean(name="flagged_examples")

  @abc.abstractmethod
  def example_losses(self, x, y_pred, training: bool) -> tf.Tensor:
    """Updates the metrics with a batch, and returns the loss of each example, float [B]."""

  @abc.abstractmethod
  def is_flagged(self, x) -> tf.Tensor:
    """Marks the examples of a batch that `check_flagged` counts, boolean [B]."""

  @abc.abstractmethod
  def check_flagged(self, share: float) -> None:
    """Called after the first batch and with every result: raises or warns by the fraction of marked examples."""

  @abc.abstractmethod
  def input_signature(self) -> list:
    """Shapes and dtypes of the inputs of `call`, as `export` takes them."""

  def fit(self, *args, sample_weight=None, **kwargs):
    self._refuse_weights(sample_weight)  # which Keras drops where there is no y
    return super().fit(*args, **kwargs)

  def evaluate(self, *args, sample_weight=None, **kwargs):
    self._refuse_weights(sample_weight)
    return super().evaluate(*args, **kwargs)

  def _refuse_weights(self, sample_weight):
    if sample_weight is not None:
      raise ValueError(f"{self.name} weighs all examples alike: leave out sample_weight and class_weight.")

  def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
    del y
    self._refuse_weights(sample_weight)
    self._flagged.update_state(self.is_flagged(x))
    losses = self.example_losses(x, y_pred, training)
    num_examples = tf.cast(tf.shape(losses)[0], losses.dtype)
    loss = tf.math.divide_no_nan(tf.reduce_sum(losses), num_examples)
    added = sum((tf.cast(added, loss.dtype) for added in self.losses), tf.zeros([], loss.dtype))
    return share_of_loss(loss, added, num_examples, training)

  def make_train_function(self, force=False):
    if self.train_function is None or force:
      super().make_train_function(force=True)
      self.train_function = self._with_first_check(self.train_function)

  def make_test_function(self, force=False):
    if self.test_function is None or force:
      super().make_test_function(force=True)
      self.test_function = self._with_first_check(self.test_function)

  def _with_first_check(self, function):
    """A function of batches that looks at the metrics after the first one.

    A compiled step cannot raise errors about data, and a step that looked at the data itself would be slower.
    """
    checked = False

    def function_with_check(iterator):
      nonlocal checked
      logs = function(iterator)
      if not checked:
        checked = True
        self.get_metrics_result()
      return logs

    return function_with_check

  def get_metrics_result(self):
    results = super().get_metrics_result()
    share = results.pop(self._flagged.name)
    # Inside a step the metrics are symbolic, or those of one replica.
    if not tf.executing_eagerly() or num_replicas() > 1:
      return results
    if np.array(self._flagged.count):
      self.check_flagged(float(share))
    without_data = {m.name for m in self.metrics if isinstance(m, keras.metrics.Mean) and not np.array(m.count)}
    return {name: value for name, value in results.items() if name not in without_data}

  def _get_metrics_result_or_logs(self, logs):
    # Keras would return the logs of the last step where they name other metrics.
    del logs
    return self.get_metrics_result()

  def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs):
    input_signature = input_signature or self.input_signature()
    return super().export(filepath, format=format, verbose=verbose, input_signature=input_signature, **kwargs)


def split_condition(inputs) -> tuple:
  """Splits inputs into data and their condition, or None if `inputs` are the data alone."""
  return inputs if isinstance(inputs, (tuple, list)) else (inputs, None)
