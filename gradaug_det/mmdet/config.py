"""How an MMEngine config file is read, and what it says of GradAug."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from gradaug_det.core.options import GradAugOptions
from gradaug_det.errors import ConfigError
from gradaug_det.mmdet.values import type_name


def load_config(file: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """An MMEngine config file with values replaced.

    Args:
        file: a config file; what it inherits (``_base_``) is followed.
        overrides: dotted key -> value, as in MMDetection's ``--cfg-options``, e.g.
            ``{"train_cfg.max_iters": 100, "custom_hooks.0.min_width": 0.8}``.

    Raises:
        ConfigError: the file does not exist, or an override does not fit it.
    """
    if not Path(file).is_file():
        raise ConfigError("config", f"names a file that does not exist: {file}")
    try:
        config = Config.fromfile(file)
    except Exception as error:  # a config is a program
        problem = f"cannot be read: {file}: {type(error).__name__}: {error}"
        raise ConfigError("config", problem) from error
    try:
        config.merge_from_dict(dict(overrides or {}))
    except (KeyError, TypeError, AssertionError) as error:
        message = error.args[0] if error.args else error
        raise ConfigError("overrides", f"cannot be used with {file}: {message}") from None
    return config


def trained_options(config: Config) -> GradAugOptions:
    """Returns which sub-networks a config's detector was trained with, if any."""
    for hook in config.get("custom_hooks") or []:
        if type_name(hook) == "GradAugHook":
            return GradAugOptions.widths_of(hook)
    return GradAugOptions.widths_of(None)
