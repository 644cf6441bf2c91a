"""Loads trained models and weights. Errors name the cause, and suggest deleting a file only if it is damaged."""

import contextlib
import lzma
import pathlib
import textwrap
import zipfile
import zlib

import keras
import tensorflow as tf

from tfvq.errors import UserError


def load_model(path) -> keras.Model:
  """Loads a model of this package from a `.keras` file, to compute in float32 whatever dtype it was trained with.

  Raises:
    UserError: There is no such file, it is damaged, it is not a model of this package, or memory is too small.
  """
  path = pathlib.Path(path)
  with _reading(path, f"There is no model {path}: name a .keras file."):
    model = keras.saving.load_model(path, compile=False)
  for layer in model._flatten_layers():
    layer.dtype_policy = "float32"
  return model


def load_weights(model: keras.Model, path) -> None:
  """Loads a checkpoint into a model of the same architecture, and into its optimiser if it has one.

  Raises:
    UserError: There is no such file, it is damaged, it does not fit the model, or memory is too small.
  """
  path = pathlib.Path(path)
  with _reading(path, f"There is no file of weights {path}: restore it from a copy, or name another one."):
    model.load_weights(path)


@contextlib.contextmanager
def _reading(path, missing):
  """Converts any error while a file is loaded to a `UserError`."""
  try:
    if not path.is_file():
      raise UserError(missing)
    with path.open("rb"):  # Keras reports a file without read permission as damaged
      pass
    yield
  except UserError:
    raise
  except Exception as error:  # Keras raises many kinds of exceptions: zip, HDF5 and shape errors
    raise UserError(_cause(path, error)) from error


def _cause(path, error):
  """The reason why a file could not be loaded, as a sentence."""
  if isinstance(error, (MemoryError, tf.errors.ResourceExhaustedError)):
    return f"There is not enough memory to load {path}: end other programs, or use a machine with more memory."
  if isinstance(error, OSError) and error.errno is not None:
    return f"{path} could not be read ({error.strerror})."
  if damage := _damage(path):
    return f"{path} is damaged ({damage}): restore it from a copy, or delete it and make it again."
  reason = textwrap.shorten(str(error) or type(error).__name__, 400)
  return f"{path} could not be loaded; it may belong to another config or version of this package ({reason})."


def _damage(path):
  """Describes the damage of a Keras file, which is a zip file; empty if all checksums match."""
  try:
    with zipfile.ZipFile(path) as file:
      altered = file.testzip()
      return f"its {altered} is altered" if altered else ""
  except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError):
    return "it is not a whole Keras file"
