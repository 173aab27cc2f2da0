"""Subcommands of ``gradaug-det`` about exports; `gradaug_det.cli` says what one is."""
