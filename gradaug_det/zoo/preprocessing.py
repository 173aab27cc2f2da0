"""Compares how a config prepares images, and the network that it builds, with a backbone's needs.

Nothing fails when they differ: the detector trains, and is worse. So it is an error here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gradaug_det.errors import ConfigError
from gradaug_det.zoo.url import ZooURL

TOLERANCE = 0.05  # of means and standard deviations on the 0-255 scale: 123.68 is 123.675


@dataclass(frozen=True)
class Setting:
    """A config's dotted key, its value, and the value that the weights ask for."""

    key: str
    given: Any
    wanted: Any

    @property
    def agrees(self) -> bool:
        if not isinstance(self.wanted, list):
            return self.given == self.wanted
        try:
            pairs = list(zip(self.given, self.wanted, strict=True))
            return all(abs(float(given) - wanted) <= TOLERANCE for given, wanted in pairs)
        except (TypeError, ValueError):  # no numbers, or more or fewer of them
            return False


def check_settings(key: str, url: ZooURL, settings: Iterable[Setting], fix: str) -> None:
    """Raises ConfigError if settings differ from what the weights ask for.

    Args:
        key: where the URL stands in the config.
        fix: what sets all of them.
    """
    sides = [
        f"{setting.key} is {_format(setting.given)}, not {_format(setting.wanted)}"
        for setting in settings
        if not setting.agrees
    ]
    if sides:
        raise ConfigError(
            key,
            f"{url.text} does not fit this config: {'; '.join(sides)}. Set the keys to what the "
            f"weights were trained with (the second value), or let {fix} do it",
        )


def fix_settings(config: Any, settings: Iterable[Setting], logger: logging.Logger) -> list[Setting]:
    """Sets what differs from what the weights ask for, and logs and returns it."""
    wrong = [setting for setting in settings if not setting.agrees]
    for setting in wrong:
        *parents, last = setting.key.split(".")
        node = config
        for parent in parents:
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
        # Some builders do not know the argument that is not wanted, whatever its value.
        if setting.wanted is None:
            del node[last]
        else:
            node[last] = setting.wanted
        logger.warning("%s: %s -> %s", setting.key, setting.given, setting.wanted)
    return wrong


def _format(value: Any) -> str:
    return str(list(value)) if isinstance(value, (list, tuple)) else repr(value)
