"""The one exception whose message is meant for the person at the terminal, and how a program tells it."""

import sys

from absl import app, flags


class UserError(Exception):
  """Something the user can mend: one sentence saying what was wrong, where, and what to do.

  `run_program` prints the sentence and exits with code 2; no stack trace is shown.
  """


def run_program(main, flags_parser) -> None:
  """Runs `main` as `absl.app.run` does; an error that the user can mend becomes one sentence and exit code 2."""
  try:
    app.run(main, flags_parser=flags_parser)
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
  except KeyboardInterrupt:
    print("stopped", file=sys.stderr)
    sys.exit(130)


def parse_flags(argv: list[str], doc: str, holders) -> list[str]:
  """Parses flags; --help prints a program's own ones.

  Args:
    argv: The command line.
    doc: What --help says first.
    holders: The program's flags.

  Returns:
    What is left of the command line.

  Raises:
    UserError: A flag is unknown, or has a value that is none of its kind.
  """
  if any(argument.lstrip("-") in ("h", "help") for argument in argv[1:]):
    print(doc)
    for holder in holders:
      print(f"  --{holder.name}: {flags.FLAGS[holder.name].help}")
    sys.exit(0)
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    raise UserError(" ".join(str(error).split())) from error
