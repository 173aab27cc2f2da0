"""The same fine-tunings in both frameworks: ``python -m studies.frameworks``."""
