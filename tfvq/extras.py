"""Packages that only some uses need: the extras of `pip install tfvq[...]`."""

import contextlib

from tfvq.errors import UserError


class MissingPackageError(UserError, ImportError):
  """A package is not installed; the message names the extra that it belongs to."""


@contextlib.contextmanager
def extra(name: str):
  """Wraps imports of packages that belong to an extra.

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
