"""What is exported: a function of a trained model, with its signature and real examples of its inputs."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

# Of `Endpoint.kept_in_float`: the product with the codebook.
LOOK_UP = ("MatMul.*", "concat.*")


@dataclasses.dataclass(frozen=True, eq=False)
class Endpoint:
  """A function of a trained model.

  Attributes:
    name: Its name, and its file's.
    function: Called with the inputs by name, gives a dict of outputs.
    inputs: A spec for each input, their shapes fixed.
    model: Whose weights it reads.
    examples: Called with a split, yields real inputs; where there is a state, in order from its beginning.
    kept_in_float: Regular expressions of the parts of the graph, by the names of their tensors, that stay in float32:
      those where rounding costs most for its size.
    kept_in_float16: The same of those that compute in float32 with weights of 16 bits, where others have 8.
    sparse_modes: TFLite modes in which the weights are written without their zeros, see `tflite.write`.
    state: Variables that the function changes, all zeros at first; only TFLite takes such a function.
  """

  name: str
  function: Callable[..., dict[str, tf.Tensor]]
  inputs: dict[str, tf.TensorSpec]
  model: keras.Model
  examples: Callable[[str], Iterator[dict[str, np.ndarray]]]
  kept_in_float: tuple[str, ...] = ()
  kept_in_float16: tuple[str, ...] = ()
  sparse_modes: tuple[str, ...] = ()
  state: tuple[tf.Variable, ...] = ()

  def reset(self) -> dict[str, tf.Tensor]:
    """Sets the state back to zeros, and says so."""
    for variable in self.state:
      variable.assign(tf.zeros(variable.shape))
    return {"done": tf.constant(True)}

  @property
  def specs(self) -> list[tf.TensorSpec]:
    """The inputs' specs with their names, in order."""
    return [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in self.inputs.items()]

  def graph(self) -> tf.types.experimental.PolymorphicFunction:
    """The function as TensorFlow traces it."""
    return tf.function(lambda *inputs: self.function(**dict(zip(self.inputs, inputs, strict=True))))

  @functools.cached_property
  def concrete(self) -> tf.types.experimental.ConcreteFunction:
    """The traced function."""
    return self.graph().get_concrete_function(*self.specs)

  def some_examples(self, split: str, num: int) -> list[dict[str, np.ndarray]]:
    """At most `num` examples: the first ones if there is a state, else evenly spread, as neighbours are much alike."""
    if self.state:
      return list(itertools.islice(self.examples(split), num))
    seen = list(itertools.islice(self.examples(split), 10 * num))
    return seen[:: -(-len(seen) // num) or 1]


def floats(*shape) -> tf.TensorSpec:
  """The spec of a float32 tensor."""
  return tf.TensorSpec(shape, tf.float32)


def integers(*shape) -> tf.TensorSpec:
  """The spec of an int32 tensor."""
  return tf.TensorSpec(shape, tf.int32)
