"""Every method of pretraining over seeds: ``python -m studies.mini_zoo``."""
