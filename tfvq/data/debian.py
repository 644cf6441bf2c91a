"""Downloads and unpacks data that Debian ships as packages, without root."""

import pathlib
import shutil
import subprocess
import tempfile

from tfvq.errors import UserError


def unpacked(package: str, cache) -> pathlib.Path:
  """The contents of a Debian package, downloaded on first use.

  Args:
    package: Name of the package.
    cache: Folder where unpacked packages are kept, one sub-folder each.

  Returns:
    The folder with the package's files, laid out as below `/`.

  Raises:
    UserError: apt-get is not installed, the package cannot be downloaded, or the folder cannot be written.
  """
  cache = pathlib.Path(cache).expanduser()
  folder = cache / package
  if folder.exists():
    return folder
  for program in ("apt-get", "dpkg-deb"):
    if not shutil.which(program):
      raise UserError(f"The Debian package {package} needs {program}, which is not installed: use a folder of files.")
  try:
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
      _run(["apt-get", "download", package], temporary, package)
      archive = next(pathlib.Path(temporary).glob("*.deb"))
      _run(["dpkg-deb", "-x", str(archive), "unpacked"], temporary, package)
      (pathlib.Path(temporary) / "unpacked").rename(folder)
  except OSError as error:
    raise UserError(f"{cache} could not be written: {error.strerror}.") from error
  return folder


def _run(command, folder, package):
  result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
  if result.returncode:
    reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise UserError(
      f"The Debian package {package} could not be downloaded ({reason}): run `apt-get update`, or go online."
    )
