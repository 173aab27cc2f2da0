"""Trainings that show what GradAug does here, and their reports: ``python -m studies.NAME``."""
