"""What training steps and scoring cost, measured: ``python -m benchmarks.NAME``."""
