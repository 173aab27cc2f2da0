"""Subcommands of ``gradaug-det`` about the zoo; `gradaug_det.cli` says what a command module is."""
