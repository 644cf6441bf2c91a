"""Exports a trained system: the program `tfvq-export`, run from a checkout.

python -m export.export_main --workdir=runs/frames --out=exported
"""

from export.__main__ import run

if __name__ == "__main__":
  run()
