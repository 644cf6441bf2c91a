"""Trains a system and measures it.

  tfvq-train --config=frames:small --workdir=runs/frames

--config is the name of one of the package's configs or the path of a config file, with its variant after a colon. Every
field of a config is a flag, such as --config.train.prior.steps=500; --config=FILE --help lists them with their values.
Run the same command again to continue a run that stopped. In a checkout, `python train_main.py` is the same program.
"""

import pathlib
import re
import shlex
import sys

from absl import flags
from ml_collections import config_flags

from tfvq.configs.rules import fields
from tfvq.errors import UserError, run_program
from tfvq.tasks import validate

_CONFIG = config_flags.DEFINE_config_file("config", None, "A config's name or file, with :small or :paper after it.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for the files of the run.")
_STAGE = flags.DEFINE_string("stage", "all", "Stage to run; all runs every stage that is not done yet, in order.")

_CONFIGS = pathlib.Path(__file__).with_name("configs")


def main(argv):
  """Runs the stages given by the flags."""
  del argv
  config = _CONFIG.value
  validate(config)
  # Imported here, so that wrong flags are reported before TensorFlow is loaded.
  from tfvq.tasks.stages import make_task, run_stages

  run_stages(make_task(config, _WORKDIR.value, _command()), _STAGE.value)


def run() -> None:
  """Runs the program on the command line's flags."""
  run_program(main, _parse_flags)


def config_names() -> list[str]:
  """Names of the package's configs, as --config takes them."""
  return sorted(path.stem for path in _CONFIGS.glob("*.py") if path.stem not in ("__init__", "common"))


def _command():
  """The command that makes the whole run, without --stage; the report shows it."""
  program = pathlib.Path(sys.argv[0])
  command = ["python", *sys.argv] if program.suffix == ".py" else [program.name, *sys.argv[1:]]
  return re.sub(r" --?stage[= ]\S+", "", shlex.join(command))


def _with_config_file(argv):
  """Replaces the name of one of the package's configs in the command line by its file."""
  argv = list(argv)
  for index, argument in enumerate(argv):
    flag, equals, value = argument.partition("=")
    if flag not in ("-config", "--config"):
      continue
    if not equals and index + 1 < len(argv):
      index, flag, value = index + 1, "", argv[index + 1]
    name, colon, variant = value.partition(":")
    if name in config_names():
      argv[index] = f"{flag}{equals}{_CONFIGS / name}.py{colon}{variant}"
  return argv


def _parse_flags(argv):
  """Parses flags; turns every error in them into a UserError."""
  wants_help = any(arg in ("-h", "-help", "--help") for arg in argv)
  try:
    remaining = flags.FLAGS(_with_config_file(arg for arg in argv if arg.lstrip("-") not in ("h", "help")))
    config = _CONFIG.value
    # A config that failed to load raises its error only when it is read.
    fields(config or {})
  except (AttributeError, KeyError) as error:
    name, _, hint = str(error.args[0]).replace("\\n", "\n").partition("\n")
    name = name.strip("\\'\"")
    raise UserError(f"The config has no field {name!r}; --help lists the fields. {hint}".strip(" \"'")) from error
  except OSError as error:
    reason = str(error).splitlines()[-1].strip()
    raise UserError(f"The config could not be read: {reason}. --help lists the configs of the package.") from error
  except (flags.Error, TypeError, ValueError) as error:
    raise UserError(" ".join(str(error).split())) from error
  if wants_help:
    _print_help(config)
    sys.exit(0)
  if len(remaining) > 1:
    raise UserError(f"Unexpected argument {remaining[1]!r}: flags look like --name=value.")
  if config is None or _WORKDIR.value is None:
    raise UserError("Both --config=FILE and --workdir=DIR are needed; see --help.")
  return remaining


def _print_help(config):
  print(__doc__)
  for holder in (_CONFIG, _WORKDIR, _STAGE):
    print(f"  --{holder.name}: {flags.FLAGS[holder.name].help}")
  if config is None:
    print("\nConfigs of the package: " + ", ".join(config_names()))
    return
  print("\nFields of this config:")
  for name, value in fields(config):
    print(f"  --config.{name}={value}")
