"""Benchmarks of speed, as ratios to a baseline in the same run."""
