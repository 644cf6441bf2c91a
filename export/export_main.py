"""Exports a trained system: the program `tfvq-export`, run from a checkout.

python -m export.export_main --workdir=runs/frames --out=exported
"""

import pathlib
import sys

if not __package__:
  # Started as a file: Python searches this folder first, and would import onnx.py for the package onnx.
  sys.path[0] = str(pathlib.Path(__file__).resolve().parent.parent)

from export.__main__ import run  # noqa: E402

if __name__ == "__main__":
  run()
