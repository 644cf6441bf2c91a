"""The base class of all models: `fit`, `evaluate` and `export`."""

import abc

import keras
import numpy as np
import tensorflow as tf

from tfvq.ops.distributed import num_replicas, share_of_loss


class LikelihoodModel(keras.Model, abc.ABC):
  """A model that minimises the mean of a loss over the examples of the global batch.

  Losses and metrics do not depend on the number of replicas, even if a batch cannot be split evenly among them. Metrics
  without data are left out of the results.

  Subclasses implement `example_losses`, `is_flagged`, `check_flagged` and `input_signature`.

  Args:
    **kwargs: As for `keras.Model`.
  """

  def __init__(self, **kwargs):
    super().__init__(**kwargs)
    self._flagged = keras.metrics.Mean(name="flagged_examples")

  @abc.abstractmethod
  def example_losses(self, x, y_pred, training: bool) -> tf.Tensor:
    """Updates the metrics with a batch.

    Args:
      x: The inputs, as `call` takes them.
      y_pred: The outputs of `call`.
      training: Whether this is a training step.

    Returns:
      The loss of each example, float [B].
    """

  @abc.abstractmethod
  def is_flagged(self, x) -> tf.Tensor:
    """Marks invalid (or suspicious) examples of a batch for `check_flagged`, boolean [B]."""

  @abc.abstractmethod
  def check_flagged(self, share: float) -> None:
    """Raises an error, or warns, depending on the fraction of marked examples.

    It is called after the first batch, and whenever the metrics are computed.
    """

  @abc.abstractmethod
  def input_signature(self) -> list:
    """Shapes and dtypes of the inputs of `call`, in the form that `export` takes."""

  def fit(self, *args, sample_weight=None, **kwargs):
    self._refuse_weights(sample_weight)  # without y, Keras would ignore them
    return super().fit(*args, **kwargs)

  def evaluate(self, *args, sample_weight=None, **kwargs):
    self._refuse_weights(sample_weight)
    return super().evaluate(*args, **kwargs)

  def _refuse_weights(self, sample_weight):
    if sample_weight is not None:
      raise ValueError(f"{self.name} does not support weights: leave out sample_weight and class_weight.")

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
    """Wraps the step function so that the metrics are computed, and the marked examples checked, after its first call.

    A compiled step cannot raise errors about data, and checking each batch outside of it would be slow.
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
    # Keras would return the logs of the last step if their names differ from those of the metrics.
    del logs
    return self.get_metrics_result()

  def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs):
    input_signature = input_signature or self.input_signature()
    return super().export(filepath, format=format, verbose=verbose, input_signature=input_signature, **kwargs)


def split_condition(inputs) -> tuple:
  """Splits inputs into (data, condition); the condition is None if `inputs` are the data alone."""
  return inputs if isinstance(inputs, (tuple, list)) else (inputs, None)
