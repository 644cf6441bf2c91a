"""The one exception whose message is meant for the person at the terminal."""


class UserError(Exception):
  """Something the user can mend: one sentence saying what was wrong, where, and what to do.

  `train_main.py` prints the sentence and exits with code 2; no stack trace is shown.
  """
