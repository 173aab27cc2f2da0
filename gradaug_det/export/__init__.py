"""Detectors as narrow as one of their sub-networks: ordinary checkpoints and configs."""
