"""The package: its metadata, its wheel, and the wheel in new environments."""

import ast
import configparser
import email
import json
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import wave
import zipfile

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.structure_test import distributions_of_import, imported_modules
from tfvq.errors import UserError
from tfvq.extras import extra

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
SOURCES = [path for folder in ("tfvq", "export") for path in sorted((ROOT / folder).rglob("*.py"))]
# The folders of the checkout, with their folders in the wheel.
FOLDERS = {"tfvq": "tfvq", "export": "tfvq/export"}
# h5py comes with Keras; the source `piano` has its own list of requirements.
UNDECLARED = {"h5py", "music21", "tinysoundfont"}
# The second backend of audio files has its own error if it does not load.
REPORTED_BY_ITSELF = {"tensorflow_serving", "tensorflow_io"}


def requirements(texts):
  """The distributions in a list of requirements, including those of the package's own extras."""
  for requirement in map(Requirement, texts):
    if requirement.name == "tfvq":
      for name in requirement.extras:
        yield from requirements(EXTRAS[name])
    else:
      yield requirement


def distributions(texts):
  return {canonicalize_name(requirement.name) for requirement in requirements(texts)}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
  """The folder of the wheel and the source distribution."""
  folder = tmp_path_factory.mktemp("dist")
  before = set(ROOT.iterdir())
  subprocess.run([sys.executable, "-m", "hatchling", "build", "--directory", folder], cwd=ROOT, check=True)
  assert set(ROOT.iterdir()) == before
  return folder


@pytest.fixture(scope="module")
def wheel(built):
  (path,) = built.glob("*.whl")
  return path


@pytest.fixture(scope="module")
def contents(wheel):
  """The wheel's files by name."""
  with zipfile.ZipFile(wheel) as file:
    return {name: file.read(name) for name in file.namelist()}


def metadata_file(contents, name):
  (key,) = (key for key in contents if key.endswith(f".dist-info/{name}"))
  return contents[key].decode()


def test_wheel_contains_only_the_package(contents):
  expected = {}
  for folder, target in FOLDERS.items():
    for path in (ROOT / folder).rglob("*"):
      if path.is_file() and "__pycache__" not in path.parts and path.name != "export_main.py":
        expected[f"{target}/{path.relative_to(ROOT / folder)}"] = path.read_bytes()
  assert {name.partition("/")[0] for name in contents} == {"tfvq", f"tfvq-{PROJECT['version']}.dist-info"}
  assert {name: content for name, content in contents.items() if name.startswith("tfvq/")} == expected


def test_commands_of_wheel_are_functions_in_it(contents):
  parser = configparser.ConfigParser()
  parser.read_string(metadata_file(contents, "entry_points.txt"))
  commands = dict(parser["console_scripts"])
  assert set(commands) == {"tfvq-train", "tfvq-export", "tfvq-codec", "tfvq-reconstruct"}
  for target in commands.values():
    module, _, function = target.partition(":")
    tree = ast.parse(contents[module.replace(".", "/") + ".py"])
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, target


def test_wheel_lists_licences_of_code_and_weights(contents):
  metadata = email.message_from_string(metadata_file(contents, "METADATA"))
  assert metadata["License-Expression"] == "Apache-2.0 AND CC-BY-SA-3.0 AND CC-BY-3.0"
  for name in metadata.get_all("License-File"):
    assert metadata_file(contents, f"licenses/{name}").encode() == (ROOT / name).read_bytes()


@pytest.mark.parametrize("folder", ["tfvq/released", "export/device/speech"])
def test_folders_of_weights_contain_their_licences(folder):
  notice = (ROOT / folder / "NOTICE").read_text()
  (facts,) = (json.loads(path.read_text()) for path in (ROOT / folder).glob("*.json"))
  for words in (
    *facts["speakers"],
    *("Allison Smith", "June Wallack", "Carlo Flora", "Maxim Topal"),
    *("CC-BY-SA 3.0", "https://creativecommons.org/licenses/by-sa/3.0/"),
    *("CC-BY 3.0", "https://creativecommons.org/licenses/by/3.0/"),
  ):
    assert words in notice


def test_device_folder_contains_its_licence():
  device = ROOT / "export" / "device"
  assert (device / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
  assert "speech/NOTICE" in (device / "NOTICE").read_text()


def test_source_distribution_contains_build_and_tests(built):
  (path,) = built.glob("*.tar.gz")
  with tarfile.open(path) as file:
    names = {name.partition("/")[2] for name in file.getnames()}
  needed = {"pyproject.toml", "LICENSE", "README.md", "Makefile", "train_main.py", "tests/package_test.py"}
  needed |= {str(path.relative_to(ROOT)) for path in SOURCES}
  assert needed <= names
  assert not any(re.search(r"(^|/)(\.venv.*|build|dist|runs|__pycache__)(/|$)", name) for name in names)


def test_every_import_is_declared():
  declared = distributions([*PROJECT["dependencies"], *(text for texts in EXTRAS.values() for text in texts)])
  for path in SOURCES:
    for module in {module.split(".")[0] for module in imported_modules(path)}:
      if module not in {*sys.stdlib_module_names, *FOLDERS, *UNDECLARED}:
        assert distributions_of_import(module) & declared, f"{path} imports {module}"


def test_packages_of_extras_are_imported_within_extra():
  core = distributions(PROJECT["dependencies"])
  optional = distributions(text for texts in EXTRAS.values() for text in texts)
  for path in SOURCES:
    if path.is_relative_to(ROOT / "export" / "device"):
      continue  # it does not depend on the package
    tree, wrapped = ast.parse(path.read_text()), set()
    for block in (node for node in ast.walk(tree) if isinstance(node, ast.With)):
      call = block.items[0].context_expr
      if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "extra":
        modules = {module.split(".")[0] for module in imported_modules_of(block)}
        wrapped |= modules
        for module in modules:
          assert distributions_of_import(module) & distributions(EXTRAS[call.args[0].value]), f"{path}: {module}"
    for module in {module.split(".")[0] for module in imported_modules_of(tree)} - wrapped - REPORTED_BY_ITSELF:
      brought = distributions_of_import(module)
      assert brought & core or not brought & optional, f"{path} imports {module} without naming its extra"


def imported_modules_of(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
      yield node.module


def test_missing_package_is_reported_with_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "PIL", None)
  with pytest.raises(UserError) as info, extra("data"):
    from PIL import Image  # noqa: F401
  assert str(info.value) == "The package PIL is not installed: run `pip install 'tfvq[data]'`."
  assert isinstance(info.value, ImportError)
  with pytest.raises(ZeroDivisionError), extra("data"):
    1 / 0  # noqa: B018


@pytest.mark.parametrize("name", ["requirements-dev.txt", "requirements-newest.txt"])
def test_locked_versions_are_within_ranges(name):
  lines = (ROOT / name).read_text()
  if "-r requirements.txt" in lines:
    lines += (ROOT / "requirements.txt").read_text()
  pins = {
    canonicalize_name(name): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", lines, flags=re.MULTILINE)
  }
  python = "3.11" if name == "requirements-dev.txt" else "3.13"
  for requirement in requirements([*PROJECT["dependencies"], "tfvq[all,espeak]"]):
    if not requirement.marker or requirement.marker.evaluate({"python_version": python}):
      assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_stderr_of_successful_block_is_dropped():
  code = """if True:
    import os, sys
    from tfvq.startup import stderr_only_on_error
    with stderr_only_on_error():
      os.write(2, b"native ")
      print("python", file=sys.stderr)
    print("between", file=sys.stderr)
    with stderr_only_on_error():
      os.write(2, b"cause ")
      sys.exit("exit")
  """
  result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
  assert result.stderr == "between\ncause exit\n" and result.returncode == 1
  closed = subprocess.run(
    ["sh", "-c", f"{sys.executable} -c 'from tfvq.startup import stderr_only_on_error as s\nwith s(): print(1)' 2>&-"],
    capture_output=True,
    check=False,
    cwd=ROOT,
  )
  assert closed.stdout == b"1\n" and closed.returncode == 0


class Environment:
  """A fresh environment, whose programs run in an empty folder."""

  def __init__(self, folder):
    self.folder, self.empty = folder / "environment", folder / "empty"
    self.empty.mkdir()
    subprocess.run([sys.executable, "-m", "uv", "venv", "--python", sys.executable, self.folder], check=True)

  def install(self, *arguments):
    command = [sys.executable, "-m", "uv", "pip", "install", "--python", self.folder / "bin" / "python", *arguments]
    subprocess.run(command, check=True)

  def run(self, program, *arguments):
    command = [self.folder / "bin" / program, *arguments]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = subprocess.run(command, cwd=self.empty, capture_output=True, text=True, check=False, env=variables)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.slow
def test_codec_of_wheel_needs_no_tensorflow(wheel, tmp_path):
  environment = Environment(tmp_path)
  environment.install("--no-deps", wheel)
  environment.install("numpy")
  empty, run = environment.empty, environment.run
  assert run("python", "-c", "import tensorflow")[0] == 1
  with wave.open(str(empty / "in.wav"), "wb") as file:
    file.setnchannels(1)
    file.setsampwidth(2)
    file.setframerate(16_000)
    file.writeframes((3000 * np.sin(np.arange(8000) / 9)).astype("<i2").tobytes())
  assert run("tfvq-codec", "encode", "in.wav", "a.codes") == (
    2,
    "",
    "error: LiteRT is not installed: run `pip install ai-edge-litert`.\n",
  )
  environment.install("ai-edge-litert")
  for arguments in (("encode", "in.wav", "a.codes"), ("decode", "a.codes", "out.wav", "--speaker=it")):
    returncode, _, errors = run("tfvq-codec", *arguments)
    assert returncode == 0, errors
  with wave.open(str(empty / "out.wav")) as file:
    assert (file.getframerate(), file.getnframes()) == (16_000, 8000)


@pytest.mark.slow
def test_wheel_without_extras_runs_quantizer_and_loads_saved_files(wheel, tmp_path):
  environment = Environment(tmp_path)
  environment.install(wheel)
  run = environment.run
  code = """if True:
    import keras, numpy as np
    from tfvq.layers import VectorQuantizer
    from tfvq.release import load_released
    keras.utils.set_random_seed(0)
    data = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    model = keras.Sequential([keras.layers.Dense(4), VectorQuantizer(16, 4), keras.layers.Dense(8)])
    model.compile(keras.optimizers.Adam(0.01), "mse", metrics=["mse"])
    errors = model.fit(data, data, epochs=40, verbose=0).history["mse"]
    assert errors[-1] < 0.9 * errors[0], errors
    model.save("model.keras")
    again = keras.saving.load_model("model.keras")
    np.testing.assert_allclose(again.predict(data, verbose=0), model.predict(data, verbose=0), rtol=1e-5, atol=1e-6)
    released, facts = load_released()
    assert released.encode(np.zeros([1, 1280], np.float32)).shape == (1, 10, 2) and len(facts["speakers"]) == 4
  """
  returncode, _, errors = run("python", "-c", code)
  assert returncode == 0, errors
  returncode, output, errors = run("tfvq-train", "--config=frames:small", "--help")
  assert returncode == 0 and "--config.train.prior.steps=" in output, errors
  for program, arguments in (
    ("tfvq-train", ("--config=frames:small", "--workdir=run")),
    ("tfvq-export", ("--workdir=run", "--out=out")),
  ):
    returncode, _, errors = run(program, *arguments)
    assert returncode == 2 and re.fullmatch(r"error: The package \w+ is not installed: .*\n", errors), errors
