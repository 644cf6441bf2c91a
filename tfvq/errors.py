"""The exceptions that end a program with one sentence for the user, and how programs print it."""

import contextlib
import os
import signal
import sys

from absl import app, flags


class UserError(Exception):
  """An error that the user can fix: one sentence that says what is wrong, where, and what to do.

  `run_program` prints the sentence and exits with code 2, without a stack trace.
  """


class Terminated(KeyboardInterrupt):
  """A signal asked the program to stop.

  It is handled like Ctrl-C: `finally` blocks remove partial files, and training saves a checkpoint.

  Args:
    signal_number: The signal.
  """

  def __init__(self, signal_number: int):
    super().__init__()
    self.exit_code = 128 + signal_number


def run_program(main, flags_parser) -> None:
  """Runs `main` as `absl.app.run` does, but prints one line instead of a stack trace for a `UserError` or a signal.

  The exit code is 2 after a `UserError`, 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP. It is 141, and
  nothing is printed, if the reader of a pipe that the program prints to has closed it, as `head` does.
  """
  for name in {"SIGTERM", "SIGHUP"} & set(dir(signal)):  # Windows has no SIGHUP
    number = getattr(signal, name)
    if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
      signal.signal(number, _terminate)
  with _silent_if_pipe_is_closed():
    try:
      app.run(main, flags_parser=flags_parser)
    except UserError as error:
      print(f"error: {error}", file=sys.stderr)
      sys.exit(error.__cause__.exit_code if isinstance(error.__cause__, Terminated) else 2)
    except KeyboardInterrupt as error:
      print("stopped", file=sys.stderr)
      sys.exit(error.exit_code if isinstance(error, Terminated) else 130)


@contextlib.contextmanager
def _silent_if_pipe_is_closed():
  """Ends the program silently if the reader of its output has closed the pipe."""
  try:
    try:
      yield
    finally:
      if sys.stdout is not None:
        sys.stdout.flush()  # otherwise Python would flush it at exit, and print the error
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what Python still flushes at exit
    sys.exit(128 + 13)  # 13 is SIGPIPE, which ends programs that are not written in Python


def _terminate(signal_number, frame):
  del frame
  signal.signal(signal_number, signal.SIG_IGN)  # a second signal must not interrupt the cleaning up
  raise Terminated(signal_number)


def parse_flags(argv: list[str], doc: str, holders) -> list[str]:
  """Parses flags; --help prints the program's own flags and exits.

  Args:
    argv: The command line.
    doc: The text that --help prints first.
    holders: The program's flags, as `flags.DEFINE_string` and its like return them.

  Returns:
    The command line without the flags.

  Raises:
    UserError: A flag is unknown, or its value is invalid.
  """
  if any(argument in ("-h", "--h", "-help", "--help") for argument in argv[1:]):
    print(doc)
    for holder in holders:
      print(f"  --{holder.name}: {flags.FLAGS[holder.name].help}")
    sys.exit(0)
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    raise UserError(" ".join(str(error).split())) from error
