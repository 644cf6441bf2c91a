"""How a program starts TensorFlow: with its fastest CPU kernels, and without log lines of its own."""

import contextlib
import os
import re
import sys
import tempfile
import threading

_STDERR_LOCK = threading.RLock()


def set_environment() -> None:
  """Sets the variables that TensorFlow reads when it is imported; those that are set already stay as they are."""
  # oneDNN's convolutions are the fastest on every x86 core measured; TensorFlow enables them by default on some only.
  # Where oneDNN is held to fewer instructions than the CPU has, TensorFlow still calls its kernels for 16-bit floats,
  # which then end the process.
  os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0" if "ONEDNN_MAX_CPU_ISA" in os.environ else "1")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def import_tensorflow() -> None:
  """Imports TensorFlow for a program; call it before anything that imports TensorFlow."""
  set_environment()
  # TensorFlow 2.18 and later write log lines while they are imported, whatever the log level is.
  with stderr_held_back():
    import tensorflow  # noqa: F401


def start_xla() -> None:
  """Starts XLA's compiler; call it before anything is compiled, and after the devices and the strategy are set up.

  TensorFlow 2.17 logs some lines when XLA compiles for the first time in a process, whatever the log level is.
  """
  import tensorflow as tf

  with stderr_held_back():
    tf.function(lambda x: x + 1, jit_compile=True)(tf.constant(0))


def stderr_held_back():
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
