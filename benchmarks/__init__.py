"""Benchmarks of speed, as ratios to a baseline in the same run."""

from tfvq.startup import import_tensorflow

import_tensorflow()
