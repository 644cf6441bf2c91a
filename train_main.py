"""Trains a system and measures it: the program `tfvq-train`, run from a checkout.

python train_main.py --config=tfvq/configs/frames.py:small --workdir=runs/frames
"""

from tfvq.train import run

if __name__ == "__main__":
  run()
