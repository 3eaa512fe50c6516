"""Speed as ratios of two sides timed in one run; `python -m benchmarks`."""
