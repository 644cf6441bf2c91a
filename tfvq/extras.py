"""Packages that only some uses need: the extras of `pip install tfvq[...]`."""

import contextlib

from tfvq.errors import UserError


class MissingPackageError(UserError, ImportError):
  """A package is not installed; the sentence names the extra that brings it."""


@contextlib.contextmanager
def extra(name: str):
  """Wraps imports of packages that an extra brings.

  >>> with extra("data"):
  ...   from PIL import Image

  Args:
    name: The extra, as pyproject.toml names it.

  Raises:
    MissingPackageError: One of the packages is not installed.
  """
  try:
    yield
  except ModuleNotFoundError as error:
    package = (error.name or str(error)).partition(".")[0]
    raise MissingPackageError(f"The package {package} is not installed: run `pip install 'tfvq[{name}]'`.") from error
