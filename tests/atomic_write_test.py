import errno
import os

import pytest

from tfvq.errors import UserError
from tfvq.files import atomic_write, read_json, write_json


def test_atomic_write_writes_all_or_nothing(tmp_path):
  path = tmp_path / "folder" / "value.json"
  write_json(path, {"a": 1})
  with pytest.raises(RuntimeError), atomic_write(path) as temporary:
    temporary.write_text("half")
    raise RuntimeError
  assert read_json(path) == {"a": 1}
  assert [file.name for file in path.parent.iterdir()] == ["value.json"]


def test_full_disk_is_reported_and_keeps_old_file(tmp_path):
  path = tmp_path / "value.json"
  write_json(path, {"a": 1})
  with pytest.raises(UserError, match="No space left"), atomic_write(path) as temporary:
    temporary.write_text("half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as a write to a full disk does
  assert read_json(path) == {"a": 1}


def test_folder_that_cannot_be_created_is_reported(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="could not be written"):
    write_json(tmp_path / "file" / "value.json", {})


def test_invalid_json_is_reported(tmp_path):
  (tmp_path / "value.json").write_text("{")
  with pytest.raises(UserError, match="not valid JSON"):
    read_json(tmp_path / "value.json")
