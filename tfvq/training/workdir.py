"""The working directory: where everything that a run makes is kept, and what tells which stages are done."""

import contextlib
import json
import pathlib
import time

from tfvq.errors import UserError
from tfvq.files import read_json, write_json

# Sections of the config that only these stages and later ones read: they may be changed until the stage begins.
_READ_BY = {"pruning.": "prune", "train.prune.": "prune", "samples.": "samples"}


class Workdir:
  """A folder with a config, and a sub-folder per stage.

  Args:
    path: The folder; made if need be.
    config: The resolved config, a plain dict.

  Raises:
    UserError: The folder was made with another config, or cannot be written. What is read only by a stage that has not
      begun may differ.
  """

  def __init__(self, path, config: dict):
    self.path = pathlib.Path(path)
    config = json.loads(json.dumps(config))  # tuples become lists, as they will be read
    config_path = self.path / "config.json"
    differing = _differences(read_json(config_path), config) if config_path.exists() else []
    begun = [name for name in differing if not self._may_change(name)]
    if begun:
      raise UserError(
        f"{self.path} was made with another config ({', '.join(begun)}): choose another --workdir, or set the fields "
        "back."
      )
    if differing or not config_path.exists():
      write_json(config_path, config)

  def folder(self, stage: str) -> pathlib.Path:
    """The folder of a stage's files."""
    return self.path / stage

  def is_done(self, stage: str) -> bool:
    """Whether a stage has ended well."""
    return self._marker(stage).exists()

  def require(self, stage: str) -> pathlib.Path:
    """The folder of a stage that must have ended well.

    Raises:
      UserError: It has not.
    """
    if not self.is_done(stage):
      raise UserError(f"{self.path} has no finished stage `{stage}`: run it first, with --stage={stage}.")
    return self.folder(stage)

  @contextlib.contextmanager
  def running(self, stage: str):
    """Marks a stage as done, with its seconds, if the block ends well.

    Yields:
      A dict for what the stage wants to add to its marker; "seconds" in it replaces the time measured here.
    """
    began_at = time.monotonic()
    facts = {}
    try:
      self.folder(stage).mkdir(parents=True, exist_ok=True)
      for partial in self.folder(stage).rglob(".partial-*"):  # of a run that was killed
        partial.unlink()
    except OSError as error:
      raise UserError(f"{self.folder(stage)} could not be made ({error.strerror}).") from error
    yield facts
    write_json(self._marker(stage), {"seconds": round(time.monotonic() - began_at, 2), **facts})

  def facts(self, stage: str) -> dict:
    """What a finished stage wrote into its marker."""
    return read_json(self._marker(stage))

  def seconds(self) -> dict[str, float]:
    """Seconds of each stage that is done."""
    markers = sorted(self.path.glob("*/done.json"), key=lambda path: path.stat().st_mtime)
    return {marker.parent.name: read_json(marker)["seconds"] for marker in markers}

  def _may_change(self, field):
    return any(field.startswith(section) and not self.folder(stage).exists() for section, stage in _READ_BY.items())

  def _marker(self, stage):
    return self.folder(stage) / "done.json"


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
