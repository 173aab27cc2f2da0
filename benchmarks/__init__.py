"""The cost of training steps and of scoring, measured: ``python -m benchmarks.NAME``."""
