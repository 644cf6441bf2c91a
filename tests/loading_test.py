import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfvq.data import image_sources
from tfvq.errors import UserError
from tfvq.training.loading import load_model, load_weights

ROOT = pathlib.Path(__file__).parent.parent


def model(units=3, names=("one", "two")):
  return keras.Sequential([keras.layers.Input([4]), *(keras.layers.Dense(units, name=name) for name in names)])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  path = tmp_path_factory.mktemp("saved") / "model.keras"
  model().save(path)
  return path


LOADERS = [load_model, lambda path: load_weights(model(), path)]


def sentence_of(load, path):
  """The error of loading a file: one line, which suggests deleting the file only if it is damaged."""
  with pytest.raises(UserError) as error:
    load(path)
  sentence = str(error.value)
  assert str(path) in sentence and "\n" not in sentence
  assert "delete" not in sentence or " is damaged (" in sentence
  return sentence


@pytest.mark.parametrize("load", LOADERS)
def test_load_returns_saved_weights(load, saved):
  load(saved)
  weights = model()
  load_weights(weights, saved)
  for a, b in zip(load_model(saved).get_weights(), weights.get_weights(), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("load", LOADERS)
def test_load_reports_missing_file(load, tmp_path):
  for path in (tmp_path / "missing.keras", tmp_path):
    assert re.match("There is no (model|file of weights) ", sentence_of(load, path))
  assert "File name too long" in sentence_of(load, tmp_path / ("n" * 300))


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_load_reports_truncated_file_as_damaged(load, share, saved, tmp_path):
  content, path = saved.read_bytes(), tmp_path / "cut.keras"
  path.write_bytes(content[: int(share * len(content))])
  assert "is damaged (it is not a whole Keras file)" in sentence_of(load, path)


@pytest.mark.parametrize("load", LOADERS)
def test_load_reports_altered_file_as_damaged(load, saved, tmp_path):
  path = tmp_path / "altered.keras"
  content = bytearray(saved.read_bytes())
  with zipfile.ZipFile(saved) as file:
    start = file.getinfo("model.weights.h5").header_offset
  for place in range(start + 100, start + 4000):
    content[place] ^= 0xFF
  path.write_bytes(content)
  assert "is damaged (its model.weights.h5 is altered)" in sentence_of(load, path)


@pytest.mark.parametrize("load", LOADERS)
def test_load_does_not_report_other_zip_file_as_damaged(load, tmp_path):
  path = tmp_path / "other.keras"
  with zipfile.ZipFile(path, "w") as file:
    file.writestr("words.txt", "words")
  assert "could not be loaded" in sentence_of(load, path)


def test_load_does_not_report_other_architecture_as_damaged(saved):
  for other, reason in ((model(units=5), "must match"), (model(names=("one", "two", "three")), "expected 2 variables")):
    sentence = sentence_of(lambda path, other=other: load_weights(other, path), saved)
    assert "could not be loaded" in sentence and reason in sentence


def test_load_does_not_report_unknown_class_as_damaged(saved, tmp_path):
  path = tmp_path / "unknown.keras"
  with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w") as target:
    for name in source.namelist():
      content = source.read(name)
      target.writestr(name, content.replace(b'"Dense"', b'"Dance"') if name == "config.json" else content)
  sentence = sentence_of(load_model, path)
  assert "could not be loaded" in sentence and "Dance" in sentence and len(sentence) < 700


class Failing(keras.layers.Dense):
  """A layer that cannot be created."""

  error = None

  def build(self, input_shape):
    if Failing.error:
      raise Failing.error
    super().build(input_shape)


@pytest.mark.parametrize(
  ("error", "words"),
  [
    (MemoryError(), "not enough memory"),
    (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"), "not enough memory"),
    (PermissionError(13, "Permission denied"), "could not be read (Permission denied)"),
    (OSError(5, "Input/output error"), "could not be read (Input/output error)"),
  ],
)
def test_load_does_not_report_lack_of_memory_as_damage(error, words, tmp_path, monkeypatch):
  path = tmp_path / "model.keras"
  keras.Sequential([keras.layers.Input([4]), Failing(2)]).save(path)
  monkeypatch.setattr(Failing, "error", error)
  with keras.utils.custom_object_scope({"Failing": Failing}):
    assert words in sentence_of(load_model, path)


def test_load_does_not_report_unreadable_file_as_damaged(saved):
  code = """if True:
    import os, sys
    from tfvq.errors import UserError
    from tfvq.training.loading import load_model
    if os.geteuid() == 0:  # permission bits do not bind root
      os.setuid(65534)
    for path in sys.argv[1:]:
      try:
        load_model(path)
      except UserError as error:
        print(error)
  """
  with tempfile.TemporaryDirectory() as top:
    pathlib.Path(top).chmod(0o755)
    paths = [pathlib.Path(top) / "file.keras", pathlib.Path(top) / "folder" / "file.keras"]
    paths[1].parent.mkdir()
    for path in paths:
      shutil.copyfile(saved, path)
    paths[0].chmod(0o000)
    paths[1].parent.chmod(0o600)
    command = [sys.executable, "-c", code, *map(str, paths)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    paths[1].parent.chmod(0o700)
  assert result.stdout == "".join(f"{path} could not be read (Permission denied).\n" for path in paths), result


def test_unreadable_images_are_not_reported_as_damaged(tmp_path):
  (tmp_path / "train.npz").mkdir()
  with pytest.raises(UserError, match=r"train.npz could not be read \(Is a directory\)"):
    image_sources._cached(tmp_path / "train.npz", None, "frames", "frame", 1)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_load_survives_random_damage(saved, data):
  content = bytearray(saved.read_bytes())
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "model.keras"
    for _ in range(data.draw(st.integers(1, 4))):
      # Most of the file is weights, so its parts are sampled first.
      start = data.draw(st.sampled_from([0, len(content) // 2, len(content) - 600]))
      place = data.draw(st.integers(start, min(start + 600, len(content)) - 1))
      content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
      load_weights(model(), path)
    except UserError as error:
      assert "\n" not in str(error) and ("delete" not in str(error) or " is damaged (" in str(error))
