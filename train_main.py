"""Trains a system and measures it.

  python train_main.py --config=tfvq/configs/frames.py:small --workdir=runs/frames

Every field of a config is a flag, such as --config.train.prior.steps=500; --config=FILE --help lists them with their
values. The same command started again goes on where it stopped.
"""

import os
import pathlib
import re
import shlex
import sys

# oneDNN's convolutions are the faster ones on every x86 core measured; TensorFlow enables them by default on some only.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags  # noqa: E402  TensorFlow reads the environment when it is imported
from ml_collections import config_flags  # noqa: E402

from tfvq.errors import UserError, run_program  # noqa: E402
from tfvq.training.validation import fields, validate  # noqa: E402

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of tfvq/configs, with :small or :paper after it.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for all that the run makes.")
_STAGE = flags.DEFINE_string("stage", "all", "One stage of the system, or all that are not done yet, in order.")


def main(argv):
  """Runs the stages that the flags ask for."""
  del argv
  config = _CONFIG.value
  validate(config)
  # Imported late: a wrong flag is told of at once, not after TensorFlow's start.
  from tfvq.training.stages import Run, run_stages
  from tfvq.training.workdir import Workdir

  workdir = Workdir(_WORKDIR.value, config.to_dict())
  # The report's command makes all of the run, whatever stage was asked for now.
  command = re.sub(r" --?stage[= ]\S+", "", shlex.join(["python", *sys.argv]))
  run_stages(Run(config, workdir, command), _STAGE.value)


def _parse_flags(argv):
  """Parses flags; what is wrong with them becomes a UserError."""
  wants_help = any(arg in ("-h", "-help", "--help") for arg in argv)
  try:
    remaining = flags.FLAGS([arg for arg in argv if arg.lstrip("-") not in ("h", "help")])
    config = _CONFIG.value
    # A file that could not be loaded says so only when something is asked of it.
    fields(config or {})
  except (AttributeError, KeyError) as error:
    name, _, hint = str(error.args[0]).replace("\\n", "\n").partition("\n")
    name = name.strip("\\'\"")
    raise UserError(f"The config has no field {name!r}; --help lists the fields. {hint}".strip(" \"'")) from error
  except OSError as error:
    reason = str(error).splitlines()[-1].strip()
    raise UserError(f"The config could not be read: {reason}. --help lists those that there are.") from error
  except (flags.Error, TypeError, ValueError) as error:
    raise UserError(" ".join(str(error).split())) from error
  if wants_help:
    _print_help(config)
    sys.exit(0)
  if len(remaining) > 1:
    raise UserError(f"Unexpected argument {remaining[1]!r}: flags look like --name=value.")
  if config is None or _WORKDIR.value is None:
    raise UserError("Both --config=FILE and --workdir=DIR are needed; --help tells more.")
  return remaining


def _print_help(config):
  print(__doc__)
  for holder in (_CONFIG, _WORKDIR, _STAGE):
    print(f"  --{holder.name}: {flags.FLAGS[holder.name].help}")
  if config is None:
    names = sorted(path.name for path in pathlib.Path(__file__).with_name("tfvq").glob("configs/*.py"))
    print("\nConfigs, in tfvq/configs: " + ", ".join(name for name in names if not name.startswith(("_", "common"))))
    return
  print("\nFields of this config:")
  for name, value in fields(config):
    print(f"  --config.{name}={value}")


if __name__ == "__main__":
  run_program(main, _parse_flags)
