"""The files that the commands read and write; - stands for standard input or output."""

import contextlib
import errno
import io
import os
import pathlib
import secrets
import stat

from .errors import CodecError


@contextlib.contextmanager
def open_source(source: str):
  """Opens a file to read; a pipe or standard input is read to its end first, to make it seekable.

  Raises:
    CodecError: It cannot be read.
  """
  try:
    with open(0 if source == "-" else source, "rb", closefd=source != "-") as file:
      yield file if source != "-" and file.seekable() else io.BytesIO(file.read())
  except OSError as error:
    raise CodecError(f"{source} could not be read: {error.strerror}.") from error


def check_target(source: str, target: str) -> None:
  """Checks that the output can be written and is not the input, before anything is computed.

  Raises:
    CodecError: It cannot be written, or is the input.
  """
  path = _path(target)
  try:
    status = _status(path)
    if status and stat.S_ISDIR(status.st_mode):
      raise CodecError(f"{target} is a folder: name a file in it.")
    if status and stat.S_ISREG(status.st_mode) and _is_opened_by(source, status):
      raise CodecError(f"{target} is the input file: give another output file.")
    if _is_stream(path):
      if not is_standard_output(target) and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
      return
    folder = path.resolve().parent
    if not _status(folder):
      raise CodecError(f"{target} could not be written: the folder {folder} does not exist.")
    probe = _new_file(folder, 0o600)
    try:
      probe.write_bytes(bytes(4096))
    finally:
      probe.unlink()
  except OSError as error:
    raise _not_written(target, error) from error


def write(target: str, content: bytes) -> None:
  """Writes a file atomically; follows links, keeps the mode, and writes directly to pipes and devices.

  Raises:
    CodecError: It cannot be written.
  """
  path = _path(target)
  try:
    if _is_stream(path):
      descriptor = 1 if is_standard_output(target) else path
      with open(descriptor, "wb", closefd=descriptor != 1) as file:
        file.write(content)
    else:
      _replace(path.resolve(), content)
  except OSError as error:
    raise _not_written(target, error) from error


def is_standard_output(target: str) -> bool:
  """Whether a file is the program's standard output."""
  try:
    return os.path.samestat(_path(target).stat(), os.fstat(1))
  except OSError:
    return False


def _path(target):
  return pathlib.Path("/dev/stdout" if target == "-" else target)


def _status(path):
  """The status of a file, or None if it does not exist."""
  try:
    return path.stat()
  except FileNotFoundError:
    return None


def _is_opened_by(source, status):
  try:
    return os.path.samestat(status, os.fstat(0) if source == "-" else pathlib.Path(source).stat())
  except OSError:
    return False


def _is_stream(path):
  """Whether a path is a pipe, device or socket, or the program's standard output."""
  status = _status(path)
  return is_standard_output(path) or (status is not None and not stat.S_ISREG(status.st_mode))


def _replace(path, content):
  before = _status(path)
  temporary = _new_file(path.parent, 0o600 if before else 0o666)
  try:
    temporary.write_bytes(content)
    if before:
      with contextlib.suppress(PermissionError, AttributeError):  # Windows has no chown
        os.chown(temporary, before.st_uid, before.st_gid)
      temporary.chmod(stat.S_IMODE(before.st_mode))
    temporary.replace(path)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink()


def _new_file(folder, mode):
  """Creates an empty file with a short and unique name."""
  path = folder / f".partial-{os.getpid()}-{secrets.token_hex(4)}"
  os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
  return path


def _not_written(target, error):
  return CodecError(f"{target} could not be written: {error.strerror or error}.")
