"""Fuzzing of everything that reads files from anywhere: ``python -m tests.faults.fuzzing``."""
