"""The units of export: functions of trained models, with their signatures and real examples of their inputs."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

# For `Endpoint.kept_in_float`: the product with the codebook.
LOOK_UP = ("MatMul.*", "concat.*")


@dataclasses.dataclass(frozen=True, eq=False)
class Signature:
  """A signature of a SavedModel.

  Attributes:
    function: Takes the inputs as keyword arguments, returns a dict of outputs.
    inputs: A spec for each input; None stands for the batch and for lengths.
    request: Real inputs, with which the SavedModel is compared and warmed up.
    models: The models whose weights the function reads.
    ranges: For each integer input that has one, its least and its greatest valid value.
  """

  function: Callable[..., dict[str, tf.Tensor]]
  inputs: dict[str, tf.TensorSpec]
  request: dict[str, np.ndarray]
  models: tuple[keras.Model, ...]
  ranges: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Endpoint:
  """A function of a trained model.

  Attributes:
    name: The name of the endpoint and of its files.
    function: Takes the inputs as keyword arguments, returns a dict of outputs.
    inputs: A spec for each input, with a fixed shape.
    model: The model whose weights the function reads.
    examples: A function of a split that yields real inputs; if there is a state, in order from its initial value.
    ranges: The least and the greatest valid value of integer inputs. They are not checked: other values give undefined
      outputs.
    kept_in_float: Regular expressions for the names of tensors whose operations stay in float32: small ones where
      rounding does most harm.
    kept_in_float16: The same for operations with float16 weights, computed in float32, where others have int8 weights.
    sparse_modes: TFLite modes in which zero weights are left out of the file, see `tflite.write`.
    state: Variables that the function changes, all zeros at first; only TFLite files can have a state.
  """

  name: str
  function: Callable[..., dict[str, tf.Tensor]]
  inputs: dict[str, tf.TensorSpec]
  model: keras.Model
  examples: Callable[[str], Iterator[dict[str, np.ndarray]]]
  ranges: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
  kept_in_float: tuple[str, ...] = ()
  kept_in_float16: tuple[str, ...] = ()
  sparse_modes: tuple[str, ...] = ()
  state: tuple[tf.Variable, ...] = ()

  def reset(self) -> dict[str, tf.Tensor]:
    """Sets the state to zeros; it has an output because a TFLite signature needs one."""
    for variable in self.state:
      variable.assign(tf.zeros(variable.shape))
    return {"done": tf.constant(True)}

  @property
  def specs(self) -> list[tf.TensorSpec]:
    """The inputs' specs, each with its name."""
    return [tf.TensorSpec(spec.shape, spec.dtype, name) for name, spec in self.inputs.items()]

  def graph(self) -> tf.types.experimental.PolymorphicFunction:
    """The function as TensorFlow traces it."""
    return tf.function(lambda *inputs: self.function(**dict(zip(self.inputs, inputs, strict=True))))

  @functools.cached_property
  def concrete(self) -> tf.types.experimental.ConcreteFunction:
    """The traced function."""
    return self.graph().get_concrete_function(*self.specs)

  def some_examples(self, split: str, num: int) -> list[dict[str, np.ndarray]]:
    """At most `num` examples: the first ones if there is a state, or else spread over ten times as many.

    They are spread because neighbouring examples are similar.
    """
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
