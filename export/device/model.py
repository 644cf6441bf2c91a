"""Runs TFLite files."""

import ctypes

import numpy as np

from .errors import CodecError
from .quiet import delegate_line_dropped

_SIGNATURE = "serving_default"


class Model:
  """A TFLite file that runs on one thread; inputs and outputs are arrays by name.

  Raises:
    CodecError: LiteRT is not installed.
  """

  def __init__(self, content):
    try:
      from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError as error:
      raise CodecError("LiteRT is not installed: run `pip install ai-edge-litert`.") from error
    interpreter = Interpreter(model_content=content, num_threads=1)
    with delegate_line_dropped():
      interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner(_SIGNATURE)
    self._inputs = {name: detail["index"] for name, detail in runner.get_input_details().items()}
    self._outputs = {name: detail["index"] for name, detail in runner.get_output_details().items()}
    self._interpreter = interpreter

  def __call__(self, **inputs) -> dict[str, np.ndarray]:
    for name, value in inputs.items():
      self.set(name, value)
    self.invoke()
    return {name: self.get(name) for name in self._outputs}

  def set(self, name: str, value) -> None:
    """Sets an input, until it is set again."""
    self._interpreter.set_tensor(self._inputs[name], value)

  def view(self, name: str) -> np.ndarray:
    """A view of the memory of an input or output, valid as long as this object exists."""
    array = self._interpreter.tensor({**self._inputs, **self._outputs}[name])()
    # The interpreter does not run while arrays that it returned are referenced. Allocated tensors do not move.
    memory = (ctypes.c_byte * array.nbytes).from_address(array.ctypes.data)
    return np.frombuffer(memory, array.dtype).reshape(array.shape)

  def invoke(self) -> None:
    """Runs the file."""
    self._interpreter.invoke()

  def get(self, name: str) -> np.ndarray:
    """An output of the last run."""
    return self._interpreter.get_tensor(self._outputs[name])
