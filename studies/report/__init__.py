"""A comparison of trainings as tables, curves, pictures and sentences."""
