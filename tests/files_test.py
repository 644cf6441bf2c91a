import os
import pathlib
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfvq.errors import UserError
from tfvq.files import atomic_write, check_writable, file_path, is_same_file, is_standard_output, write_json

ROOT = pathlib.Path(__file__).parent.parent


def write(path, content=b"new"):
  with atomic_write(path) as temporary:
    temporary.write_bytes(content)


def mode_of(path):
  return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def umask():
  before = os.umask(0o027)
  yield 0o027
  os.umask(before)


@pytest.fixture
def open_folder():
  """A folder that every user may enter."""
  folder = pathlib.Path(tempfile.mkdtemp())
  folder.chmod(0o755)
  yield folder
  shutil.rmtree(folder)


def run_python(code, *arguments, **options):
  """Runs code in a new process."""
  command = [sys.executable, "-c", code, *map(str, arguments)]
  return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **options)


def test_atomic_write_follows_symbolic_link(tmp_path):
  target, link, second = tmp_path / "there" / "target.txt", tmp_path / "link.txt", tmp_path / "second.txt"
  target.parent.mkdir()
  target.write_bytes(b"old")
  link.symlink_to("there/target.txt")
  second.symlink_to(link)
  write(second)
  assert second.is_symlink() and link.is_symlink() and not target.is_symlink()
  assert target.read_bytes() == b"new"
  with pytest.raises(RuntimeError), atomic_write(link) as temporary:
    temporary.write_bytes(b"half")
    raise RuntimeError
  assert target.read_bytes() == b"new" and os.listdir(target.parent) == ["target.txt"]


def test_atomic_write_creates_target_of_link(tmp_path):
  link = tmp_path / "link"
  link.symlink_to(tmp_path / "folder" / "target")
  check_writable(link)
  assert not (tmp_path / "folder").exists()
  write(link)
  assert link.is_symlink() and (tmp_path / "folder" / "target").read_bytes() == b"new"


def test_link_to_itself_is_rejected(tmp_path):
  (tmp_path / "loop").symlink_to("loop")
  for function in (write, check_writable):
    with pytest.raises(UserError, match="loop could not be written .Too many levels of symbolic links"):
      function(tmp_path / "loop")


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o755, 0o444])
def test_atomic_write_keeps_mode(mode, tmp_path, umask):
  path = tmp_path / "file"
  path.write_bytes(b"old")
  path.chmod(mode)
  with atomic_write(path) as temporary:
    assert not mode_of(temporary) & 0o077  # not readable by others while it is written
    temporary.write_bytes(b"new")
  assert path.read_bytes() == b"new" and mode_of(path) == mode


def test_new_file_has_mode_of_umask(tmp_path, umask):
  write(tmp_path / "file")
  assert mode_of(tmp_path / "file") == 0o666 & ~umask


def test_atomic_write_keeps_owner(tmp_path):
  path = tmp_path / "file"
  path.write_bytes(b"old")
  owner, group = (65534, 65533) if os.geteuid() == 0 else (os.geteuid(), os.getgroups()[-1])
  os.chown(path, owner, group)
  path.chmod(0o640)
  write(path)
  assert (path.stat().st_uid, path.stat().st_gid, mode_of(path)) == (owner, group, 0o640)


def test_pipe_receives_bytes(tmp_path):
  pipe, received, content = tmp_path / "pipe.wav", [], os.urandom(300_000)
  os.mkfifo(pipe)
  check_writable(pipe)
  reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
  reader.start()
  with atomic_write(pipe) as temporary:
    assert temporary.suffix == ".wav" and temporary.parent == pathlib.Path(tempfile.gettempdir())
    temporary.write_bytes(content)
  reader.join()
  assert received == [content] and stat.S_ISFIFO(pipe.stat().st_mode)
  assert os.listdir(tmp_path) == ["pipe.wav"] and not temporary.exists()


def test_device_is_not_replaced(tmp_path):
  before = pathlib.Path("/dev/null").stat()
  (tmp_path / "link").symlink_to("/dev/null")
  for path in ("/dev/null", tmp_path / "link"):
    check_writable(path)
    write(path)
  after = pathlib.Path("/dev/null").stat()
  assert (before.st_rdev, before.st_ino, before.st_mode) == (after.st_rdev, after.st_ino, after.st_mode)
  with pytest.raises(UserError, match="/dev/full could not be written .No space left on device"):
    write("/dev/full")
  assert stat.S_ISCHR(pathlib.Path("/dev/full").stat().st_mode)


def test_socket_is_rejected_and_not_replaced(tmp_path):
  path = tmp_path / "socket"
  with socket.socket(socket.AF_UNIX) as server:
    server.bind(str(path))
    with pytest.raises(UserError, match="socket could not be written"):
      write(path)
  assert stat.S_ISSOCK(path.stat().st_mode)


STREAM = """if True:
  import sys
  from tfvq.files import atomic_write, is_standard_output
  for path in sys.argv[1:]:
    assert is_standard_output(path)
    print("before", flush=True)
    with atomic_write(path) as temporary:
      temporary.write_bytes(b"bytes")
    print("after")
"""


def test_standard_output_receives_bytes_in_order(tmp_path):
  assert run_python(STREAM, "/dev/stdout").stdout == "before\nbytesafter\n"
  log = tmp_path / "log"
  with open(log, "w") as file:
    subprocess.run([sys.executable, "-c", STREAM, "/dev/stdout", log], cwd=ROOT, stdout=file, check=True)
  assert log.read_text() == "before\nbytesafter\n" * 2
  assert not is_standard_output(tmp_path / "other")


def test_closed_pipe_is_reported():
  code = """if True:
    import sys
    from absl import flags
    from tfvq.errors import run_program
    from tfvq.files import atomic_write
    def main(argv):
      sys.stdin.read(1)
      with atomic_write("/dev/stdout") as temporary:
        temporary.write_bytes(bytes(1_000_000))
    run_program(main, flags.FLAGS)
  """
  process = subprocess.Popen(
    [sys.executable, "-c", code],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  process.stdout.close()
  process.stdin.write("x")
  process.stdin.close()
  process.stdin = process.stdout = None
  assert process.communicate()[1] == "error: /dev/stdout could not be written (Broken pipe).\n"
  assert process.returncode == 2


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127 + "n", "n" * 251 + ".wav", "n." + "s" * 253])
def test_longest_names_are_written(name, tmp_path):
  check_writable(tmp_path / name)
  for content in (b"1", b"2"):
    write(tmp_path / name, content)
    assert (tmp_path / name).read_bytes() == content
  assert os.listdir(tmp_path) == [name]


@given(suffix=st.text("abc_é0", max_size=40), num=st.integers(1, 200))
def test_temporary_name_is_short_and_keeps_suffix(suffix, num):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / f"{'n' * num}.{suffix}"
    with atomic_write(path) as temporary:
      assert len(os.fsencode(temporary.name)) <= 100
      assert temporary.suffix in (path.suffix, "") and (temporary.suffix or len(os.fsencode(path.suffix)) != 4)
      temporary.write_bytes(b"")
    assert path.exists()


@pytest.mark.parametrize("function", [write, check_writable, lambda path: write_json(path, {})])
@pytest.mark.parametrize(
  ("name", "sentence"),
  [
    ("n" * 256, r"could not be written \(File name too long\)"),
    ("é" * 128, r"could not be written \(File name too long\)"),
    ("missing/" + "n" * 256, r"could not be written \(File name too long\)"),
    ("n" * 256 + "/file", r"could not be written \(File name too long\)"),
    ("file/below", r"could not be written \(Not a directory\)"),
    ("file/below/more", r"could not be written \(Not a directory\)"),
    ("folder", "is a folder: name a file in it"),
    ("link", "is a folder: name a file in it"),
    (".", "is a folder: name a file in it"),
    ("/proc/nothing", "could not be written"),
    ("/proc/nothing/below", "could not be written"),
    ("/sys/nothing", "could not be written"),
  ],
)
def test_unwritable_path_is_reported(function, name, sentence, tmp_path):
  (tmp_path / "file").write_text("")
  (tmp_path / "folder").mkdir()
  (tmp_path / "link").symlink_to("folder")
  with pytest.raises(UserError, match=sentence):
    function(tmp_path / name)
  assert {path.name for path in tmp_path.iterdir()} <= {"file", "folder", "link", "missing"}
  assert not list((tmp_path / "folder").iterdir())


def test_check_writable_leaves_nothing(tmp_path):
  check_writable(tmp_path / "a" / "b" / "file")
  (tmp_path / "kept").write_text("kept")
  check_writable(tmp_path / "kept")
  assert os.listdir(tmp_path) == ["kept"] and (tmp_path / "kept").read_text() == "kept"


REFUSED = """if True:
  import os, sys
  from tfvq.errors import UserError
  from tfvq.files import atomic_write, check_writable
  if os.geteuid() == 0 and "nobody" in sys.argv:  # permission bits do not bind root
    os.setuid(65534)
  def write(path):
    with atomic_write(path) as temporary:
      temporary.write_bytes(b"new")
  for function in (check_writable, write):
    try:
      function(sys.argv[1])
    except UserError as error:
      print(error)
"""


@pytest.mark.parametrize(("mode", "name"), [(0o555, "file"), (0o644, "file"), (0o000, "file"), (0o555, "folder/file")])
def test_folder_without_permission_is_reported(mode, name, open_folder):
  closed = open_folder / "closed"
  closed.mkdir()
  closed.chmod(mode)
  result = run_python(REFUSED, closed / name, "nobody")
  assert result.stdout.count("could not be written (Permission denied)") == 2, result
  assert not result.stderr and not list(closed.iterdir())


def test_full_disk_is_reported_by_check_writable(tmp_path):
  limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
  result = run_python(limit + REFUSED, tmp_path / "file")
  assert result.stdout.count("could not be written (File too large)") == 2, result
  assert not result.stderr and not list(tmp_path.iterdir())


def test_pipe_without_permission_is_reported(open_folder):
  os.mkfifo(open_folder / "pipe", 0o444)
  (open_folder / "pipe").chmod(0o444)
  result = run_python(REFUSED.replace("check_writable, write", "check_writable,"), open_folder / "pipe", "nobody")
  assert "could not be written (Permission denied)" in result.stdout, result


def test_is_same_file_follows_links(tmp_path):
  path, other = tmp_path / "file", tmp_path / "other"
  path.write_text("a")
  other.write_text("a")
  (tmp_path / "link").symlink_to(path)
  os.link(path, tmp_path / "hard")
  os.mkfifo(tmp_path / "pipe")
  for name in ("file", "link", "hard", "../" + tmp_path.name + "/file"):
    assert is_same_file(path, tmp_path / name)
  assert not is_same_file(path, other)
  assert not is_same_file(path, tmp_path / "missing") and not is_same_file(tmp_path / "missing", path)
  assert not is_same_file(tmp_path / "pipe", tmp_path / "pipe") and not is_same_file("/dev/null", "/dev/null")
  code = "from tfvq.files import is_same_file; import sys; print(is_same_file(*sys.argv[1:]))"
  with open(path) as file:
    assert run_python(code, "/dev/stdin", tmp_path / "link", stdin=file).stdout == "True\n"
  with open(path) as file:
    assert run_python(code, "/dev/stdin", other, stdin=file).stdout == "False\n"


def test_file_path_returns_path(tmp_path):
  assert file_path(str(tmp_path / "a.wav")) == tmp_path / "a.wav"
