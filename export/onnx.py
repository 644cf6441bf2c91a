"""Writes ONNX files with tf2onnx, and runs them."""

import numpy as np

from tfvq.endpoints.endpoint import Endpoint
from tfvq.extras import extra
from tfvq.startup import stderr_only_on_error

with extra("export"):
  import onnxruntime
  import tf2onnx

OPSET = 17


def convert(endpoint: Endpoint) -> bytes:
  """Writes an ONNX file of an endpoint; the same model gives the same bytes."""
  with stderr_only_on_error():  # TensorFlow 2.17 logs the number of GPUs
    model, _ = tf2onnx.convert.from_function(endpoint.graph(), endpoint.specs, opset=OPSET)
  names = {value.name: value.name for value in (*model.graph.input, *model.graph.output)}
  _settle_equal_outputs(model.graph)
  _order(model.graph, names)
  model.graph.doc_string = ""  # contains the number of functions that TensorFlow has traced
  return model.SerializeToString(deterministic=True)


class Runner:
  """Runs an ONNX file as a function of arrays by name."""

  def __init__(self, content: bytes):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

  def __call__(self, **inputs):
    names = [output.name for output in self._session.get_outputs()]
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    return dict(zip(names, self._session.run(names, arrays), strict=True))

  def reset(self) -> None:
    """Does nothing: ONNX files have no state."""


def _settle_equal_outputs(graph):
  """Makes the first of several equal outputs the computed one and the others its copies; tf2onnx may pick any."""
  outputs = [value.name for value in graph.output]
  sources = {name: name for name in outputs}
  for node in graph.node:
    if node.op_type == "Identity" and node.input[0] in sources and node.output[0] in sources:
      sources[node.output[0]] = node.input[0]
  first = {}
  for name in outputs:
    first.setdefault(sources[name], name)
  swaps = first | {name: source for source, name in first.items()}
  for node in graph.node:
    node.input[:] = [swaps.get(name, name) for name in node.input]
    node.output[:] = [swaps.get(name, name) for name in node.output]
  for initializer in graph.initializer:
    initializer.name = swaps.get(initializer.name, initializer.name)


def _order(graph, names):
  """Orders and names a graph's nodes by their dependencies: tf2onnx's order and names differ from run to run.

  Args:
    graph: The graph, changed in place.
    names: New names of tensors by their old names; those of this graph are added.
  """
  producers = {name: node for node in graph.node for name in node.output}
  ordered, seen = [], set()

  def visit(name):
    node = producers.get(name)
    if node is None or id(node) in seen:
      return
    seen.add(id(node))
    for needed in _needed(node):
      visit(needed)
    ordered.append(node)

  for output in graph.output:
    visit(output.name)
  for initializer in graph.initializer:
    names.setdefault(initializer.name, "")
  number = len(names)
  for node in ordered:
    for name in node.input:
      if names.get(name) == "" and name:
        names[name] = f"constant_{number}"
        number += 1
    for attribute in node.attribute:
      if attribute.HasField("g"):
        inner = attribute.g
        names.update({value.name: f"{value.name}_{number}" for value in inner.input})
        _order(inner, names)
    node.name = f"{node.op_type}_{number}"
    for index, name in enumerate(node.output):
      names.setdefault(name, f"{node.name}_{index}")
    number += 1
  for node in ordered:
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names[name] for name in node.output]
  for value in (*graph.input, *graph.output):
    value.name = names[value.name]
  kept = [initializer for initializer in graph.initializer if names[initializer.name]]
  for initializer in kept:
    initializer.name = names[initializer.name]
  _replace(graph.initializer, sorted(kept, key=lambda initializer: initializer.name))
  _replace(graph.node, ordered)
  del graph.value_info[:]


def _replace(field, values):
  """Replaces the values of a repeated field; the new values may be some of its own."""
  copies = [type(value).FromString(value.SerializeToString()) for value in values]
  del field[:]
  field.extend(copies)


def _needed(node):
  """Names of the tensors that a node and its subgraphs read."""
  yield from node.input
  for attribute in node.attribute:
    for inner in attribute.g.node if attribute.HasField("g") else ():
      yield from _needed(inner)
