"""Drops a log line of LiteRT that no option turns off."""

import contextlib
import os
import tempfile
import threading

_LINE = b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n"
_LOCK = threading.Lock()


@contextlib.contextmanager
def delegate_line_dropped():
  """Drops the line that LiteRT writes to stderr when it first creates XNNPACK's kernels for a model.

  All else that is written to stderr during the block appears at its end. One thread at a time is in such a block.
  """
  with _LOCK, contextlib.ExitStack() as at_end:
    try:
      stderr = os.dup(2)
    except OSError:  # stderr is closed
      yield
      return
    at_end.callback(os.close, stderr)
    written = at_end.enter_context(tempfile.TemporaryFile())
    os.dup2(written.fileno(), 2)
    try:
      yield
    finally:
      os.dup2(stderr, 2)
      written.seek(0)
      os.write(stderr, written.read().replace(_LINE, b""))
