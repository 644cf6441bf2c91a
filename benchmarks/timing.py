"""Median times of functions that run alternately, so that other load on the machine affects all of them alike."""

import time
from collections.abc import Callable

import numpy as np


def medians(functions: dict[str, Callable[[], object]], rounds: int = 5, turn_seconds: float = 0.5) -> dict[str, float]:
  """Median seconds per call of each function, after one warm-up call each.

  Args:
    functions: The functions, by name.
    rounds: Number of turns of each function.
    turn_seconds: Minimum duration of a turn. Short functions are called many times in a turn, because the threads of
      the function before keep spinning for milliseconds.
  """
  for function in functions.values():
    function()
  seconds = {name: [] for name in functions}
  for _ in range(rounds):
    for name, function in functions.items():
      turn_began_at = time.perf_counter()
      while time.perf_counter() - turn_began_at < turn_seconds:
        began_at = time.perf_counter()
        function()
        seconds[name].append(time.perf_counter() - began_at)
  return {name: float(np.median(values)) for name, values in seconds.items()}


def report(title: str, seconds: dict[str, float], baseline: str, per_call: float, unit: str) -> None:
  """Prints a line per function: seconds, speed, and speed relative to the baseline."""
  print(title)
  for name, value in seconds.items():
    print(f"  {name:32s} {value:9.4f} s {per_call / value:14,.0f} {unit}/s {seconds[baseline] / value:8.1f} x")
