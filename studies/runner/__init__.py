"""Fine-tunings of the mini detector as processes of either framework."""
