"""The working directory, which contains all files of a run and records which stages are done."""

import contextlib
import json
import os
import pathlib
import socket
import time

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

from tfvq.errors import UserError
from tfvq.files import read_json, write_json

# Sections of the config that only these stages and later ones read: they may change until the stage begins.
_READ_BY = {"pruning.": "prune", "train.prune.": "prune", "samples.": "samples"}


class Workdir:
  """A folder with a config, and a sub-folder per stage.

  Any number of processes may read it. One process at a time runs stages in it, under a lock that ends with the process.

  Args:
    path: The folder; created if it does not exist.
    config: The resolved config, a plain dict.

  Raises:
    UserError: The folder was made with another config, cannot be written, or its config would change while another
      process runs stages. Fields may differ if only stages that have not begun read them.
  """

  def __init__(self, path, config: dict):
    self.path = pathlib.Path(path)
    self._config = json.loads(json.dumps(config))  # tuples become lists, as in the config that is read
    self._is_held = self._has_lock = False
    if self._must_write_config():
      with self.held():
        pass

  def folder(self, stage: str) -> pathlib.Path:
    """The folder of a stage's files."""
    return self.path / stage

  def is_done(self, stage: str) -> bool:
    """Whether a stage is finished."""
    return self._marker(stage).exists()

  def require(self, stage: str) -> pathlib.Path:
    """The folder of a finished stage.

    Raises:
      UserError: The stage is not finished.
    """
    if not self.is_done(stage):
      raise UserError(f"{self.path} has no finished stage `{stage}`: run it first, with --stage={stage}.")
    return self.folder(stage)

  @contextlib.contextmanager
  def held(self):
    """Locks the folder, so that no other process runs stages until the block ends; may be nested.

    Yields:
      This object.

    Raises:
      UserError: Another process holds the lock, the folder cannot be written, or its config was changed meanwhile.
    """
    if self._is_held:
      yield self
      return
    with _lock(self.path) as self._has_lock:
      if self._must_write_config():
        write_json(self._config_path, self._config)
      self._is_held = True
      try:
        yield self
      finally:
        self._is_held = self._has_lock = False

  @contextlib.contextmanager
  def running(self, stage: str):
    """Locks the folder, and marks a stage as done, with its seconds, if the block succeeds.

    Yields:
      A dict for facts that the stage adds to its marker; "seconds" in it replaces the time measured here.

    Raises:
      UserError: See `held`.
    """
    began_at = time.monotonic()
    facts = {}
    with self.held():
      try:
        self.folder(stage).mkdir(parents=True, exist_ok=True)
        # They were left by a run that was killed; without a lock, they may belong to a run that is active.
        for partial in self.folder(stage).rglob(".partial-*") if self._has_lock else ():
          partial.unlink()
      except OSError as error:
        raise UserError(f"{self.folder(stage)} could not be written ({error.strerror}).") from error
      yield facts
      write_json(self._marker(stage), {"seconds": round(time.monotonic() - began_at, 2), **facts})

  def facts(self, stage: str) -> dict:
    """The facts that a finished stage wrote into its marker."""
    return read_json(self._marker(stage))

  def seconds(self) -> dict[str, float]:
    """Seconds of each stage that is done."""
    markers = sorted(self.path.glob("*/done.json"), key=lambda path: path.stat().st_mtime)
    return {marker.parent.name: read_json(marker)["seconds"] for marker in markers}

  @property
  def _config_path(self):
    return self.path / "config.json"

  def _must_write_config(self):
    """Whether config.json is missing, or differs in fields that may still change.

    Raises:
      UserError: It differs in other fields.
    """
    if not os.path.lexists(self._config_path):
      return True
    differing = _differences(read_json(self._config_path), self._config)
    begun = [name for name in differing if not self._may_change(name)]
    if begun:
      raise UserError(
        f"{self.path} was made with another config ({', '.join(begun)}): choose another --workdir, or reset these "
        "fields."
      )
    return bool(differing)

  def _may_change(self, field):
    return any(field.startswith(section) and not self.folder(stage).exists() for section, stage in _READ_BY.items())

  def _marker(self, stage):
    return self.folder(stage) / "done.json"


@contextlib.contextmanager
def _lock(folder):
  """Holds the lock of a folder; the operating system frees it when the process ends, even if it is killed.

  Yields:
    Whether the file system supports locks; if not, several processes may run in the folder.

  Raises:
    UserError: Another process holds the lock, or the folder cannot be written.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
    file = os.fdopen(os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666), "r+")
  except OSError as error:
    raise UserError(f"{folder} could not be written ({error.strerror}).") from error
  with file:
    try:
      has_lock = fcntl is not None
      if has_lock:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      holder = file.read() or "another process"
      raise UserError(
        f"{folder} is in use by {holder}: wait until it has ended, or choose another --workdir."
      ) from error
    except OSError:
      has_lock = False
    if has_lock:
      _write_holder(file, f"process {os.getpid()} on {socket.gethostname()}")
    try:
      yield has_lock
    finally:
      if has_lock:
        _write_holder(file, "")


def _write_holder(file, holder):
  with contextlib.suppress(OSError):  # without it, other processes say only that the folder is in use
    file.seek(0)
    file.truncate()
    file.write(holder)
    file.flush()


def _differences(old, new, prefix=""):
  """Names of the fields in which two nested dicts differ, each with its two values."""
  differing = []
  for key in sorted({*old, *new}):
    a, b = old.get(key), new.get(key)
    if isinstance(a, dict) and isinstance(b, dict):
      differing += _differences(a, b, f"{prefix}{key}.")
    elif a != b:
      differing.append(f"{prefix}{key} was {a} and is {b}")
  return differing
