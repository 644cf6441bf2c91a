"""SavedModels for servers, with warm-up requests."""

import pathlib

import tensorflow as tf

from tfvq.endpoints.endpoint import Signature

from .parity import compare

WARMUP_REQUESTS = "assets.extra/tf_serving_warmup_requests"


def write_saved_model(
  signatures: dict[str, Signature], folder: pathlib.Path
) -> tuple[dict[str, dict], dict[str, dict]]:
  """Writes a SavedModel, with the request of each signature as a warm-up request.

  Warm-up requests are left out if the package tensorflow-serving-api is not installed.

  Args:
    signatures: The signatures.
    folder: A new folder.

  Returns:
    For each signature its inputs and outputs, {"encode": {"inputs": {name: [shape, dtype]}, "input_ranges":
    {name: [least, greatest]}, "outputs": {...}}, ...}; and for each output of each signature, such as "encode/codes",
    the metrics of `export.parity.compare` on its warm-up request.
  """
  holder = tf.Module()
  models = {model for signature in signatures.values() for model in signature.models}
  holder.tracked = [variable.value for model in models for variable in model.variables]
  graphs = {
    name: tf.function(_for_any_batch(signature.function, signature.inputs)).get_concrete_function(**signature.inputs)
    for name, signature in signatures.items()
  }
  tf.saved_model.save(holder, str(folder), graphs)
  _write_warmup(folder, {name: signature.request for name, signature in signatures.items()})
  described = {
    name: {
      "inputs": _described(signature.inputs),
      "input_ranges": {key: list(limits) for key, limits in signature.ranges.items()},
      "outputs": _described(graphs[name].structured_outputs),
    }
    for name, signature in signatures.items()
  }
  served, parity = tf.saved_model.load(str(folder)).signatures, {}
  for name, signature in signatures.items():
    inputs = {key: tf.constant(value) for key, value in signature.request.items()}
    expected, given = graphs[name](**inputs), served[name](**inputs)
    parity |= {f"{name}/{key}": compare(expected[key].numpy(), given[key].numpy()) for key in expected}
  return described, parity


def _for_any_batch(function, specs):
  """Makes a function work for empty batches, which convolutions reject, by computing one example and dropping it."""
  batched = [name for name, spec in specs.items() if spec.shape.rank and spec.shape[0] is None]
  if not batched:
    return function

  def for_any_batch(**inputs):
    batch_size = tf.shape(inputs[batched[0]])[0]
    for name in batched:
      padding = [[0, tf.cast(batch_size == 0, tf.int32)], *[[0, 0]] * (inputs[name].shape.rank - 1)]
      inputs[name] = tf.pad(inputs[name], padding)
    return {name: output[:batch_size] for name, output in function(**inputs).items()}

  return for_any_batch


def _write_warmup(folder, requests):
  """Writes a request for each signature, if possible; TensorFlow Serving runs them when it loads the model."""
  try:
    from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_log_pb2
  except ModuleNotFoundError:
    return
  path = folder / WARMUP_REQUESTS
  path.parent.mkdir()
  with tf.io.TFRecordWriter(str(path)) as writer:
    for signature, inputs in requests.items():
      request = predict_pb2.PredictRequest(
        model_spec=model_pb2.ModelSpec(signature_name=signature),
        inputs={name: tf.make_tensor_proto(value) for name, value in inputs.items()},
      )
      log = prediction_log_pb2.PredictionLog(predict_log=prediction_log_pb2.PredictLog(request=request))
      writer.write(log.SerializeToString())


def _described(specs):
  return {name: [spec.shape.as_list(), spec.dtype.name] for name, spec in specs.items()}
