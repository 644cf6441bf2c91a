import ast
import doctest
import functools
import importlib
import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest
from packaging.utils import canonicalize_name

from tests.sound import tone
from tfvq.data.audio_files import AudioReader, write_wav

ROOT = pathlib.Path(__file__).parent.parent
LAYERS = (
  "errors",
  "extras",
  "files",
  "startup",
  "configs",
  "ops",
  "layers",
  "models",
  "data",
  "evaluation",
  "training",
  "endpoints",
  "tasks",
)


def imported_modules(path):
  """Modules that a file imports by their full name; relative imports stay within its package."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
      yield from [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]


@functools.cache
def distributions_of_import(module):
  """The distributions that contain a module."""
  return {canonicalize_name(name) for name in installed_distributions().get(module, [module])}


@functools.cache
def installed_distributions():
  return importlib.metadata.packages_distributions()


@pytest.mark.parametrize("layer", LAYERS)
def test_layer_imports_only_earlier_layers(layer):
  above = set(LAYERS[LAYERS.index(layer) + 1 :])
  folder = ROOT / "tfvq" / layer
  for path in folder.rglob("*.py") if folder.is_dir() else [folder.with_suffix(".py")]:
    for module in imported_modules(path):
      parts = module.split(".")
      assert parts[0] != "export", f"{path} imports {module}"
      assert not (parts[0] == "tfvq" and len(parts) > 1 and parts[1] in above), f"{path} imports {module}"


def test_nothing_outside_of_tasks_and_configs_knows_systems_by_name():
  names = set()
  for path in (ROOT / "tfvq" / "configs").glob("*.py"):
    names |= set(re.findall(r'run_settings\("[\w.]+:(\w+)"\)', path.read_text()))
  assert len(names) >= 3
  for path in (*(ROOT / "tfvq").rglob("*.py"), *(ROOT / "export").rglob("*.py"), ROOT / "train_main.py"):
    if path.parent.name not in ("tasks", "configs") and path.name != "release.py":  # which is for speech models
      for name in names:
        assert not re.search(rf"\b{name}\b", path.read_text()), f"{path} knows {name}"


def test_configs_import_nothing_heavy():
  for path in (ROOT / "tfvq" / "configs").glob("*.py"):
    assert set(imported_modules(path)).isdisjoint({"tensorflow", "keras", "numpy"}), path


def test_config_is_validated_without_tensorflow():
  code = """if True:
    import sys
    from tfvq import train
    from tfvq.configs import frames
    from tfvq.errors import UserError
    config = frames.small()
    config.seed = -1
    try:
      train.validate(config)
    except UserError as error:
      assert "seed" in str(error) and "tensorflow" not in sys.modules
      sys.exit(7)
  """
  assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 7


def test_device_package_imports_only_numpy_and_litert():
  for path in (ROOT / "export" / "device").glob("*.py"):
    for module in imported_modules(path):
      name = module.split(".")[0]
      assert name in {*sys.stdlib_module_names, "numpy", "ai_edge_litert"}, module


MODULES = [
  ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
  for folder in ("tfvq", "export")
  for path in sorted((ROOT / folder).rglob("*.py"))
  if ">>>" in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
  import numpy as np
  import tensorflow as tf

  import tfvq.layers
  import tfvq.models

  names = {**vars(tfvq.layers), **vars(tfvq.models), "np": np, "tf": tf}
  result = doctest.testmod(importlib.import_module(name), extraglobs=names)
  assert result.attempted and not result.failed


def test_readme_python_runs(tmp_path, monkeypatch):
  blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
  assert len(blocks) == 2
  monkeypatch.chdir(tmp_path)
  write_wav(tmp_path / "in.wav", [tone(0.5)], 16_000)
  for block in blocks:
    exec(compile(block, "README.md", "exec"), {})
  assert AudioReader(tmp_path / "out.wav").num_samples == 63 * 128  # whole frames


def test_readme_files_exist():
  text = (ROOT / "README.md").read_text()
  for name in re.findall(r"`((?:tfvq|docs|benchmarks|tests)/[\w/.]+)`", text) + re.findall(r"\]\(([\w/.]+)\)", text):
    assert (ROOT / name).exists(), name


def test_build_names_every_requirement():
  build = (ROOT / "BUILD").read_text()
  named = set(re.findall(r'requirement\("([\w-]+)"\)', build))
  lines = (ROOT / "requirements.txt").read_text() + (ROOT / "requirements-dev.txt").read_text()
  required = {canonicalize_name(name) for name in re.findall(r"^([\w-]+)==", lines, flags=re.MULTILINE)}
  assert named <= required
  own = {"tfvq", "export", "tests", "train_main", "benchmarks"}
  piano = {"music21", "tinysoundfont"}  # has its own list of requirements
  for path in (path for folder in ("tfvq", "export", "tests") for path in (ROOT / folder).rglob("*.py")):
    for module in {module.split(".")[0] for module in imported_modules(path)} - own - piano:
      assert module in sys.stdlib_module_names or distributions_of_import(module) & named, f"{path} imports {module}"


def test_build_lists_every_helper_of_tests():
  build = (ROOT / "BUILD").read_text()
  for path in (ROOT / "tests").glob("*.py"):
    assert path.stem.endswith("_test") or f'"tests/{path.name}"' in build, path
