"""Subcommands of ``gradaug-det`` about data; `gradaug_det.cli` says what a command module is."""
