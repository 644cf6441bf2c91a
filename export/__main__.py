"""Exports a trained system: TFLite files for devices, a SavedModel for servers, ONNX for other runtimes.

  tfvq-export --workdir=runs/frames --out=exported
  tfvq-export --workdir=runs/speech --out=exported --formats=tflite --quantize=none,dynamic
  tfvq-export --workdir=runs/speech --model=runs/speech/prune/model.keras --out=exported

The folder --out gets tflite/QUANTISATION/*.tflite, onnx/*.onnx, saved_model/, and export.json, which lists each file's
signature and checksum, and the differences of its outputs from those of the trained model on held-out data.
Each folder of TFLite files of a speech system is a codec that `tfvq-codec` runs.
In a checkout, `python -m export.export_main` is the same program.
"""

import os
import pathlib
import secrets
import shutil

from absl import flags, logging

from tfvq.errors import UserError, parse_flags, run_program
from tfvq.startup import import_tensorflow

_FORMATS = ("tflite", "saved_model", "onnx")
_QUANTIZATIONS = ("none", "float16", "dynamic", "int8")

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run.")
_OUT = flags.DEFINE_string("out", None, "Folder to write; an earlier export in it is replaced.")
_CHOSEN_FORMATS = flags.DEFINE_list("formats", list(_FORMATS), f"Formats to write, of {', '.join(_FORMATS)}.")
_CHOSEN_QUANTIZATIONS = flags.DEFINE_list(
  "quantize",
  list(_QUANTIZATIONS),
  "Quantisations of TFLite files: none (float32), float16 (weights), dynamic (int8 weights, activations quantised at "
  "run time), int8 (weights and activations, with calibrated ranges).",
)
_MODEL = flags.DEFINE_string(
  "model", "", "Model to export instead of the run's autoencoder, such as prune/model.keras in its folder."
)
_WRITTEN = {"tflite", "saved_model", "onnx", "export.json"}


def main(argv):
  """Exports the run in --workdir to --out."""
  import_tensorflow()
  from tfvq.tasks.stages import open_task

  from .exporter import export

  del argv
  logging.set_verbosity(logging.WARNING)  # the converters log every step
  out = pathlib.Path(_OUT.value).resolve()
  suffix = f"{os.getpid()}-{secrets.token_hex(4)}"  # without the name of `out`, which may be as long as a name can be
  partial, old = out.with_name(f".partial-{suffix}"), out.with_name(f".old-{suffix}")
  try:
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= _WRITTEN):
      raise UserError(f"{_OUT.value} is not an export, and only an export is replaced: choose another --out.")
    task = open_task(_WORKDIR.value)
    rows = export(task, partial, _CHOSEN_FORMATS.value, _CHOSEN_QUANTIZATIONS.value, _MODEL.value)
    if out.exists():
      out.rename(old)
    partial.rename(out)
  except OSError as error:
    raise UserError(f"{error.filename or out} could not be read or written ({error.strerror or error}).") from error
  finally:
    if old.exists() and not out.exists():
      old.rename(out)
    for folder in (partial, old):
      shutil.rmtree(folder, ignore_errors=True)
  for name, size, summary in rows:
    print(f"{out / name}: {size / 1e6:.2f} MB{summary}")


def _parse_flags(argv):
  remaining = parse_flags(argv, __doc__, (_WORKDIR, _OUT, _CHOSEN_FORMATS, _CHOSEN_QUANTIZATIONS, _MODEL))
  if _WORKDIR.value is None or _OUT.value is None or len(remaining) > 1:
    raise UserError("Both --workdir=DIR and --out=DIR are needed, and no arguments other than flags; see --help.")
  for flag, allowed in ((_CHOSEN_FORMATS, _FORMATS), (_CHOSEN_QUANTIZATIONS, _QUANTIZATIONS)):
    unknown = [value for value in flag.value if value not in allowed]
    if unknown or not flag.value:
      raise UserError(f"--{flag.name} has {', '.join(unknown) or 'no value'}; choose from {', '.join(allowed)}.")
  return remaining


def run() -> None:
  """Runs the program on the command line's flags."""
  run_program(main, _parse_flags)


if __name__ == "__main__":
  run()
