"""Processes that tests start."""

import signal


def default_signals():
  """For `preexec_fn`: a background job of a shell ignores some signals, and so would the processes that it starts."""
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
