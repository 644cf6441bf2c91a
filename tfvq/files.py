"""Files that are written whole or not at all, and errors a person can act on."""

import contextlib
import hashlib
import json
import os
import pathlib

from tfvq.errors import UserError


@contextlib.contextmanager
def atomic_write(path):
  """Yields the path of a temporary file beside `path`, which takes its place if the block ends well.

  The temporary name keeps the suffix of `path`, by which some writers choose the format.

  Raises:
    UserError: It is a folder, its own folder cannot be made or written, or the disk is full.
  """
  path = file_path(path)
  temporary = path.with_name(f".partial-{os.getpid()}-{path.name}")
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    temporary.replace(path)
  except OSError as error:
    raise UserError(
      f"{path} could not be written ({error.strerror or error}); what was there before is kept."
    ) from error
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


def file_path(path) -> pathlib.Path:
  """The path of a file to be written.

  Raises:
    UserError: It is a folder's.
  """
  path = pathlib.Path(path)
  if not path.name or path.is_dir():
    raise UserError(f"{path} is a folder: name a file in it.")
  return path


def write_json(path, value) -> None:
  """Writes a JSON file whole."""
  with atomic_write(path) as temporary:
    temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path):
  """Reads a JSON file.

  Raises:
    UserError: It is not there, or not JSON.
  """
  path = pathlib.Path(path)
  try:
    return json.loads(path.read_text())
  except OSError as error:
    raise UserError(f"{path} could not be read: {error.strerror}.") from error
  except ValueError as error:
    raise UserError(f"{path} is not valid JSON ({error}): delete it, and run again what writes it.") from error


def sha256(path) -> str:
  """SHA-256 of a file's bytes, hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
