"""Subcommands of ``gradaug-det`` about benchmarks; `gradaug_det.cli` says what one is."""
