"""What a training on many GPUs costs, on paper: ``python -m benchmarks.scaling``."""
