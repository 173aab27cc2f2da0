"""Real photographs: many ways to train a small detector, each at several widths."""
