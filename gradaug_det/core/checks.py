"""Checks of settings: the sentence names the key, the value given and the values allowed."""

from __future__ import annotations

import math
import sys
from typing import Any

from gradaug_det.errors import ConfigError


def check_number(
    key: str, value: Any, *, high: float = math.inf, above: float | None = None
) -> float:
    """Returns ``value`` if it is a number in [0, high], or in (above, high] with ``above``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Compared, not asked by math.isfinite, which fails for an integer of hundreds of digits.
    number = number and abs(value) <= sys.float_info.max
    if not number or not (value >= 0 if above is None else value > above) or not value <= high:
        low = "[0" if above is None else f"({above:g}"
        allowed = f"{low}, {high:g}{')' if math.isinf(high) else ']'}"
        raise ConfigError(key, f"must be a number in {allowed}, got {value!r}")
    return float(value)


def check_width(value: Any, key: str = "width") -> float:
    """Returns ``value`` if it is a width multiplier, in (0, 1]."""
    return check_number(key, value, high=1.0, above=0.0)


def check_integer(key: str, value: Any, low: int | None = None) -> int:
    """Returns ``value`` if it is an integer, at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, int) or (low is not None and value < low):
        bound = "" if low is None else f" of at least {low}"
        raise ConfigError(key, f"must be an integer{bound}, got {value!r}")
    return value


def check_bool(key: str, value: Any) -> bool:
    """Returns ``value`` if it is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(key, f"must be True or False, got {value!r}")
    return value
