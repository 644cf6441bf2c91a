"""The one exception whose message is meant for the person at the terminal, and how a program tells it."""

import sys

from absl import app


class UserError(Exception):
  """Something the user can mend: one sentence saying what was wrong, where, and what to do.

  `run_program` prints the sentence and exits with code 2; no stack trace is shown.
  """


def run_program(main, flags_parser=None) -> None:
  """Runs `main` as `absl.app.run` does; an error that the user can mend becomes one sentence and exit code 2."""
  try:
    app.run(main, **({"flags_parser": flags_parser} if flags_parser else {}))
  except UserError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
