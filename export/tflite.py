"""Writes TFLite files, with or without quantisation, and runs them."""

import contextlib
import functools
import io
import pathlib
import tempfile

import numpy as np
import tensorflow as tf

from tfvq.endpoints.endpoint import Endpoint
from tfvq.extras import extra
from tfvq.startup import stderr_only_on_error

from .device.quiet import delegate_line_dropped

with extra("export"):
  from ai_edge_litert import schema_py_generated as schema
  from ai_edge_litert.interpreter import Interpreter, OpResolverType
  from ai_edge_litert.tools import flatbuffer_utils
  from ai_edge_quantizer import quantizer, recipe_manager
  from ai_edge_quantizer.algorithm_manager import AlgorithmName
  from ai_edge_quantizer.qtyping import TFLOperationName

MODES = ("none", "float16", "dynamic", "int8")

_QUANTIZED_OPS = (TFLOperationName.CONV_2D, TFLOperationName.CONV_2D_TRANSPOSE, TFLOperationName.FULLY_CONNECTED)
_LOOK_UPS = TFLOperationName.EMBEDDING_LOOKUP
_NUM_CALIBRATION_EXAMPLES = 200
_MIN_RANGE = 0.01  # width of an activation range; kernels reject the empty range of a unit that is never active
_SIGNATURE = "serving_default"
_OUTPUTS = "StatefulPartitionedCall.*"  # a layer whose output is an output of the file stays in float32


def write(endpoint: Endpoint, mode: str) -> bytes:
  """Writes a TFLite file of an endpoint, with builtin operations only; if it has a state, also the signature "reset".

  Args:
    endpoint: The endpoint.
    mode: "none": float32. "float16": float16 weights. "dynamic": int8 weights; activations are quantised to int8 at run
      time, row by row. "int8": int8 weights and activations, with ranges calibrated on the split "train".

  Returns:
    The file's bytes; the same model gives the same bytes.
  """
  if mode in endpoint.sparse_modes:
    rounded = (tf.lite.Optimize.DEFAULT,) if mode == "dynamic" else ()
    return _convert(endpoint, (tf.lite.Optimize.EXPERIMENTAL_SPARSITY, *rounded))
  return _quantize(_convert(endpoint), mode, endpoint)


def is_possible(endpoint: Endpoint, mode: str) -> bool:
  """Whether an endpoint can be written in a mode: ranges of activations cannot be calibrated if there is a state."""
  return not (endpoint.state and mode == "int8")


@functools.lru_cache(maxsize=1)  # all modes of an endpoint start from the same file
def _convert(endpoint, optimizations=()):
  # TensorFlow does not track Keras's variables, so they are listed explicitly.
  holder = tf.Module()
  holder.tracked = [variable.value for variable in endpoint.model.variables]
  holder.state = list(endpoint.state)
  signatures = {_SIGNATURE: endpoint.concrete}
  if endpoint.state:
    signatures["reset"] = tf.function(endpoint.reset).get_concrete_function()
  with tempfile.TemporaryDirectory() as folder:
    tf.saved_model.save(holder, folder, signatures)
    converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=list(signatures))
    converter.experimental_enable_resource_variables = bool(endpoint.state)
    converter.optimizations = list(optimizations)
    # XNNPACK's products of sparse int8 weights are wrong with a scale for each channel.
    converter._experimental_disable_per_channel_quantization_for_dense_layers = bool(optimizations)
    with stderr_only_on_error():  # TensorFlow 2.17 warns about options that were not set
      return converter.convert()


def _quantize(content, mode, endpoint):
  if mode == "none":
    return content
  recipe = recipe_manager.RecipeManager()
  if mode == "dynamic":
    content = _with_look_ups(content)
    recipe.add_dynamic_config(".*", _LOOK_UPS, 8)
  for operation in _QUANTIZED_OPS:
    if mode == "float16":
      recipe.add_weight_only_config(".*", operation, 16, algorithm_key=AlgorithmName.FLOAT_CASTING)
    elif mode == "dynamic":
      recipe.add_dynamic_config(".*", operation, 8)
    else:
      recipe.add_static_config(".*", operation, activation_num_bits=8, weight_num_bits=8)
    for part in (*endpoint.kept_in_float, _OUTPUTS):
      recipe.add_quantization_config(part, operation, algorithm_key=AlgorithmName.NO_QUANTIZE)
    for part in endpoint.kept_in_float16:
      recipe.add_weight_only_config(part, operation, 16, algorithm_key=AlgorithmName.FLOAT_CASTING)
  examples = endpoint.some_examples("train", _NUM_CALIBRATION_EXAMPLES) if mode == "int8" else []
  with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), stderr_only_on_error():
    path = pathlib.Path(folder) / "model.tflite"
    path.write_bytes(content)
    machine = quantizer.Quantizer(str(path))
    machine.load_quantization_recipe(recipe.get_quantization_recipe())
    calibration = None
    if machine.need_calibration:
      calibration = machine.calibrate({_SIGNATURE: examples})
      for limits in calibration.values():
        limits["max"] = np.maximum(limits["max"], limits["min"] + _MIN_RANGE)
    return bytes(machine.quantize(calibration).quantized_model)


def _with_look_ups(content):
  """Replaces GATHER of rows of a table by EMBEDDING_LOOKUP, because GATHER does not support int8 tables."""
  model = flatbuffer_utils.read_model_from_bytearray(bytearray(content))
  code = schema.OperatorCodeT()
  code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.EMBEDDING_LOOKUP
  code.version = 1
  model.operatorCodes.append(code)
  for graph in model.subgraphs:
    for operation in graph.operators:
      if model.operatorCodes[operation.opcodeIndex].builtinCode != schema.BuiltinOperator.GATHER:
        continue
      table, rows = (graph.tensors[index] for index in operation.inputs)
      is_constant = model.buffers[table.buffer].data is not None
      if is_constant and operation.builtinOptions.axis == 0 and len(table.shape) == 2 and len(rows.shape) == 1:
        operation.opcodeIndex = len(model.operatorCodes) - 1
        operation.inputs = operation.inputs[::-1]
        operation.builtinOptions, operation.builtinOptionsType = None, 0
  return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


class Runner:
  """Runs a TFLite file as a function of arrays by name.

  Args:
    content: The file.
    xnnpack: Whether to use XNNPACK's kernels, as devices do, or the builtin ones.
  """

  def __init__(self, content: bytes, xnnpack: bool = True):
    resolver = OpResolverType.AUTO if xnnpack else OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    self._interpreter = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=resolver)
    with delegate_line_dropped():
      self._interpreter.allocate_tensors()
    self._run = self._interpreter.get_signature_runner(_SIGNATURE)
    self._has_state = "reset" in self._interpreter.get_signature_list()

  def __call__(self, **inputs) -> dict[str, np.ndarray]:
    return self._run(**inputs)

  def reset(self) -> None:
    """Sets the state to zeros, if there is one."""
    if self._has_state:
      self._interpreter.get_signature_runner("reset")()
