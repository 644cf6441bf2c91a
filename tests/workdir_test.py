import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import pytest

from tfvq.errors import UserError
from tfvq.training.workdir import Workdir

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = {"task": "speech", "pruning": {"method": "channels"}}

HOLD = """if True:
  import json, sys, time
  from tfvq.files import atomic_write
  from tfvq.training.workdir import Workdir
  with Workdir(sys.argv[1], json.loads(sys.argv[2])).held() as workdir:
    with workdir.running("samples"), atomic_write(workdir.folder("samples") / "x.wav") as temporary:
      print("held", flush=True)
      sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
  """Another process that uses a workdir."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLD, str(tmp_path), json.dumps(CONFIG)],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.communicate()


def partials(folder):
  return [path for path in folder.rglob(".partial-*") if path.is_file()]


def test_workdir_is_locked_by_one_process(holder, tmp_path):
  (partial,) = partials(tmp_path)
  workdir = Workdir(tmp_path, CONFIG)
  sentence = re.escape(f"{tmp_path} is in use by process {holder.pid} on {socket.gethostname()}")
  for context in (workdir.held(), workdir.running("samples"), workdir.running("data")):
    with pytest.raises(UserError, match=sentence), context:
      raise AssertionError("two processes at work")
  assert partials(tmp_path) == [partial]
  holder.communicate("")
  assert holder.returncode == 0 and workdir.is_done("samples") and not partials(tmp_path)
  with workdir.held():
    pass


def test_killed_process_releases_lock(holder, tmp_path):
  holder.send_signal(signal.SIGKILL)
  holder.wait()
  assert partials(tmp_path)
  with Workdir(tmp_path, CONFIG).running("samples"):
    assert not partials(tmp_path)


def test_reading_needs_no_lock(holder, tmp_path):
  workdir = Workdir(tmp_path, CONFIG)
  assert not workdir.is_done("samples") and workdir.seconds() == {}


def test_config_of_locked_workdir_is_not_changed(holder, tmp_path):
  before = (tmp_path / "config.json").read_bytes()
  with pytest.raises(UserError, match="is in use by process"):
    Workdir(tmp_path, {**CONFIG, "pruning": {"method": "blocks"}})
  assert (tmp_path / "config.json").read_bytes() == before


def test_config_changed_before_lock_is_reported(tmp_path):
  workdir = Workdir(tmp_path, CONFIG)
  (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "task": "frames"}))
  with pytest.raises(UserError, match="task was frames and is speech"), workdir.held():
    raise AssertionError("the config of another run")


def test_lock_may_be_nested(tmp_path):
  workdir = Workdir(tmp_path, CONFIG)
  with workdir.held():
    with workdir.held(), workdir.running("data"):
      pass
    with pytest.raises(UserError, match=f"is in use by process {os.getpid()} "), Workdir(tmp_path, CONFIG).held():
      raise AssertionError("two at work")
  with Workdir(tmp_path, CONFIG).held():
    assert workdir.is_done("data")


def test_child_of_killed_process_does_not_keep_lock(tmp_path):
  code = """if True:
    import json, subprocess, sys, os
    from tfvq.training.workdir import Workdir
    with Workdir(sys.argv[1], json.loads(sys.argv[2])).held():
      child = subprocess.Popen(["sleep", "60"])
      print(child.pid, flush=True)
      os.kill(os.getpid(), 9)
  """
  command = [sys.executable, "-c", code, str(tmp_path), json.dumps(CONFIG)]
  process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
  child = int(process.stdout.readline())
  process.wait()
  try:
    os.kill(child, 0)  # it is still running
    with Workdir(tmp_path, CONFIG).held():
      pass
  finally:
    os.kill(child, signal.SIGKILL)


def test_lock_file_is_not_part_of_config_or_stages(tmp_path):
  with Workdir(tmp_path, CONFIG).running("data"):
    pass
  workdir = Workdir(tmp_path, CONFIG)
  assert list(workdir.seconds()) == ["data"] and json.loads((tmp_path / "config.json").read_text()) == CONFIG


def test_unwritable_workdir_is_reported(tmp_path):
  (tmp_path / "file").write_text("")
  for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("n" * 300), "/proc/nothing"):
    with pytest.raises(UserError, match="could not be (read|written)"):
      Workdir(path, CONFIG)
  Workdir(tmp_path / "run", CONFIG)
  (tmp_path / "run" / "data").write_text("")
  with pytest.raises(UserError, match="data could not be written"), Workdir(tmp_path / "run", CONFIG).running("data"):
    pass


def test_folder_without_run_is_reported(tmp_path):
  from tfvq.tasks.stages import open_task  # takes seconds to import

  for name in ("missing", "n" * 300, "file/below"):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not the folder of a run"):
      open_task(tmp_path / name)


def test_partial_files_are_kept_without_locks(tmp_path, monkeypatch):
  """As on a network file system without locks, where `fcntl` raises an error."""
  import errno
  import fcntl

  def no_locks(*arguments):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  workdir = Workdir(tmp_path, CONFIG)
  partial = workdir.folder("samples") / ".partial-1-x.wav"
  partial.parent.mkdir()
  partial.write_bytes(b"half")
  monkeypatch.setattr(fcntl, "flock", no_locks)
  with workdir.running("samples"):
    assert partial.exists()
  assert workdir.is_done("samples")
