"""Tasks: the code that differs between systems of images, speech and WaveNets, in a file that the config names."""

import importlib
import importlib.util
import pathlib
import sys
import zlib

from ml_collections import ConfigDict

from tfvq.configs.common import RUN_RULES
from tfvq.configs.rules import check_fields, require
from tfvq.errors import UserError
from tfvq.startup import import_tensorflow


def find_task(name: str) -> type:
  """The class that the field `task` of a config names, a subclass of `tfvq.tasks.task.Task`.

  Args:
    name: "module:Class", such as "tfvq.tasks.images:ImageTask", or "path/to/file.py:Class".

  Raises:
    UserError: There is no such module, file or class.
  """
  module_name, colon, class_name = str(name).rpartition(":")
  advice = "name a class as module:Class or path/to/file.py:Class"
  if not colon or not module_name or not class_name:
    raise UserError(f"config.task is {name!r}: {advice}.")
  import_tensorflow()
  try:
    module = _load_file(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
  except (ModuleNotFoundError, FileNotFoundError) as error:
    raise UserError(f"config.task is {name!r}, which could not be imported ({error}): {advice}.") from error
  if not hasattr(module, class_name):
    raise UserError(f"config.task is {name!r}, and {module_name} has no class {class_name}: {advice}.")
  return getattr(module, class_name)


def validate(config: ConfigDict) -> None:
  """Checks a config before anything starts, so that no run fails hours later because of a wrong value.

  Fields that all configs have are checked first, before TensorFlow is imported, which takes seconds.

  Raises:
    UserError: A field is missing or has a value that cannot work; the message names the field.
  """
  require(config, "task", "seed", "strategy", "precision", "train")
  check_fields(config, RUN_RULES, ("seed", "strategy", "precision", "train."))
  for name, settings in config.train.items():
    path = settings.get("initial_weights")
    if path and not pathlib.Path(path).is_file():
      raise UserError(f"config.train.{name}.initial_weights is {path!r}, and there is no such file: name a checkpoint.")
  find_task(config.task).validate(config)


def _load_file(path):
  """Loads a module from a file, once."""
  path = pathlib.Path(path).resolve()
  name = f"tfvq_task_{path.stem}_{zlib.crc32(str(path).encode())}"
  if name not in sys.modules:
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
      spec.loader.exec_module(module)
    except BaseException:
      del sys.modules[name]
      raise
  return sys.modules[name]
