"""Starts TensorFlow for a program: with its fastest CPU kernels and without its log lines."""

import contextlib
import os
import re
import sys
import tempfile
import threading

_STDERR_LOCK = threading.RLock()


def set_environment() -> None:
  """Sets environment variables that TensorFlow reads when it is imported, unless they are already set."""
  # oneDNN's convolutions are the fastest on every x86 core measured; TensorFlow enables them by default on some only.
  # If ONEDNN_MAX_CPU_ISA restricts oneDNN's instruction set, TensorFlow still calls its kernels for 16-bit floats,
  # which then crash.
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0" if "ONEDNN_MAX_CPU_ISA" in os.environ else "1")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def import_tensorflow() -> None:
  """Imports TensorFlow for a program; call it before anything that imports TensorFlow."""
  set_environment()
  # TensorFlow 2.18 and later print log lines at import, whatever the log level.
  with stderr_only_on_error():
    import tensorflow  # noqa: F401


def start_xla() -> None:
  """Starts XLA's compiler; call it after devices and strategy are set up and before anything is compiled.

  TensorFlow 2.17 prints log lines when XLA first compiles in a process, whatever the log level.
  """
  import tensorflow as tf

  with stderr_only_on_error():
    tf.function(lambda x: x + 1, jit_compile=True)(tf.constant(0))


def stderr_only_on_error():
  """Context that drops what is written to stderr, also by native libraries, unless the block raises an exception.

  One thread at a time is in such a block, and what other threads write meanwhile is dropped too.
  """
  return _redirected_stderr(lambda written, failed: written if failed else b"")


def stderr_without(pattern: bytes):
  """Context that drops what matches a regular expression from what is written to stderr, also by native libraries.

  One thread at a time is in such a block, and what is written meanwhile appears at its end.
  """
  return _redirected_stderr(lambda written, failed: re.sub(pattern, b"", written))


@contextlib.contextmanager
def _redirected_stderr(kept):
  """Collects what is written to stderr, and writes `kept(written, failed)` at the end of the block."""
  with _STDERR_LOCK, tempfile.TemporaryFile() as collected:
    try:
      stderr = None if sys.stderr is None else os.dup(2)
    except OSError:
      stderr = None
    if stderr is None:  # stderr is closed
      yield
      return
    sys.stderr.flush()
    os.dup2(collected.fileno(), 2)
    failed = True
    try:
      yield
      failed = False
    finally:
      sys.stderr.flush()
      os.dup2(stderr, 2)
      os.close(stderr)
      collected.seek(0)
      if rest := kept(collected.read(), failed):
        os.write(2, rest)
