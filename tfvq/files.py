"""Atomic writes, and file errors that the user can fix."""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import stat
import tempfile

from tfvq.errors import UserError

_MAX_SUFFIX_BYTES = 32  # longer suffixes are not formats, and would make the temporary name too long


@contextlib.contextmanager
def atomic_write(path):
  """Yields the path of an empty temporary file that replaces `path` if the block succeeds.

  The temporary name keeps the suffix of `path`, from which some writers choose the format. If `path` is a symbolic
  link, the file that it points to is replaced. An existing file keeps its mode and, where permitted, its owner. Pipes
  and devices are not replaced: they receive the bytes once the block has succeeded.

  Raises:
    UserError: `path` is a folder, its own folder cannot be created or written, or the disk is full.
  """
  path = file_path(path)
  try:
    if is_stream(path):
      temporary = _new_file(pathlib.Path(tempfile.gettempdir()), path.suffix, 0o600)
    else:
      path.resolve().parent.mkdir(parents=True, exist_ok=True)
      temporary = _new_file(path.resolve().parent, path.suffix, 0o600 if _status(path) else 0o666)
    try:
      yield temporary
      _deliver(temporary, path)
    finally:
      with contextlib.suppress(OSError):
        temporary.unlink()
  except OSError as error:
    raise _not_writable(path, error) from error


def check_writable(path) -> None:
  """Checks that `atomic_write` can write a file, so that a program can fail early.

  It leaves nothing behind and does not create missing folders.

  Raises:
    UserError: `path` is a folder, its own folder cannot be created or written, or the disk is full.
  """
  path = file_path(path)
  try:
    if is_stream(path):
      if not is_standard_output(path) and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
      return
    target = path.resolve()
    folder = next(parent for parent in target.parents if _status(parent))
    for name in target.relative_to(folder).parts:
      _status(folder / name)  # raises if the name is too long
    probe = _new_file(folder, "", 0o600)
    try:
      probe.write_bytes(bytes(4096))
    finally:
      probe.unlink()
  except OSError as error:
    raise _not_writable(path, error) from error


def file_path(path) -> pathlib.Path:
  """The path of a file to write.

  Raises:
    UserError: It is a folder, or its folder cannot be accessed.
  """
  path = pathlib.Path(path)
  try:
    status = _status(path)
  except OSError as error:
    raise _not_writable(path, error) from error
  if status and stat.S_ISDIR(status.st_mode):
    raise UserError(f"{path} is a folder: name a file in it.")
  return path


def is_stream(path) -> bool:
  """Whether a path is a pipe, device or socket, or the program's standard output."""
  try:
    mode = pathlib.Path(path).stat().st_mode
  except OSError:
    return False
  return is_standard_output(path) or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_standard_output(path) -> bool:
  """Whether a path is the program's standard output, like /dev/stdout."""
  try:
    return os.path.samestat(pathlib.Path(path).stat(), os.fstat(1))
  except OSError:
    return False


def is_same_file(path, other) -> bool:
  """Whether two paths refer to the same regular file, directly or through links."""
  path = pathlib.Path(path)
  try:
    return path.is_file() and path.samefile(other)
  except OSError:
    return False


def write_json(path, value) -> None:
  """Writes a JSON file atomically."""
  with atomic_write(path) as temporary:
    temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path):
  """Reads a JSON file.

  Raises:
    UserError: It does not exist, cannot be read, or is not JSON.
  """
  path = pathlib.Path(path)
  try:
    return json.loads(path.read_text())
  except OSError as error:
    raise UserError(f"{path} could not be read ({error.strerror}).") from error
  except ValueError as error:
    raise UserError(
      f"{path} is not valid JSON ({error}): delete it and run the command that writes it again."
    ) from error


def sha256(path) -> str:
  """SHA-256 of a file's bytes, hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _new_file(folder, suffix, mode):
  """Creates an empty file with a short and unique name."""
  suffix = suffix if len(os.fsencode(suffix)) <= _MAX_SUFFIX_BYTES else ""
  path = folder / f".partial-{os.getpid()}-{secrets.token_hex(4)}{suffix}"
  os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
  return path


def _deliver(temporary, path):
  """Moves or copies a finished temporary file to its destination."""
  if is_standard_output(path):
    # Opening the path would truncate a file that standard output is redirected to.
    _copy_to(1, temporary)
  elif is_stream(path):
    _copy_to(path, temporary)
  else:
    if before := _status(path):
      with contextlib.suppress(PermissionError, AttributeError):  # Windows has no chown
        os.chown(temporary, before.st_uid, before.st_gid)
      temporary.chmod(stat.S_IMODE(before.st_mode))
    temporary.replace(path.resolve())


def _copy_to(target, source):
  with open(source, "rb") as read, open(target, "wb", closefd=not isinstance(target, int)) as written:
    shutil.copyfileobj(read, written)


def _status(path):
  """The status of a file, or None if it does not exist."""
  try:
    return path.stat()
  except FileNotFoundError:
    return None


def _not_writable(path, error):
  return UserError(f"{path} could not be written ({error.strerror or error}).")
