"""The cost of a training on many GPUs, on paper: ``python -m benchmarks.scaling``."""
