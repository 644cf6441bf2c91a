"""Helpers for tests that start processes."""

import signal


def default_signals():
  """For `preexec_fn`: restores signals, because background jobs of a shell and their children ignore some."""
  for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
