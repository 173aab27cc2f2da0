"""Whether a config prepares images as a backbone was trained to see them, and builds its network.

Nothing fails when they differ: the detector trains, and is worse. So it is an error here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gradaug_det.errors import ConfigError
from gradaug_det.zoo.url import ZooURL

TOLERANCE = 0.05  # of means and standard deviations on the 0-255 scale: 123.68 is 123.675


@dataclass(frozen=True)
class Needs:
    """What a backbone asks of a detector's config.

    Args:
        order, mean, std: of the images, 0-255, as the weights are delivered.
        depth, groups, group_width: of the ResNet; ``group_width`` is 64 in an ordinary one.
        deep_stem: three 3x3 convolutions in place of one 7x7.
        stride_in: "3x3" or "1x1" in a bottleneck; None for networks of basic blocks.
    """

    order: str
    mean: list[float]
    std: list[float]
    depth: int
    groups: int
    group_width: int
    deep_stem: bool
    stride_in: str | None

    @property
    def expansion(self) -> int:
        """Channels of the first stage's output over 64."""
        return 4 if self.depth >= 50 else 1

    @classmethod
    def of(cls, url: ZooURL) -> Needs:
        """What the weights behind that URL ask for. Raises ZooError if there are none."""
        info = url.info()
        step = 1 if info.channel_order == url.order else -1
        resnext = re.fullmatch(r"resnext\d+_(\d+)x(\d+)d", info.architecture)
        ordinary = 128 if info.architecture.startswith("wide_") else 64
        return cls(
            order=url.order,
            mean=list(info.pixel_mean[::step]),
            std=list(info.pixel_std[::step]),
            depth=info.depth,
            groups=int(resnext[1]) if resnext else 1,
            group_width=int(resnext[2]) if resnext else ordinary,
            deep_stem=info.stem == "deep",
            stride_in=info.stride_in if info.depth >= 50 else None,
        )


@dataclass(frozen=True)
class Setting:
    """A config's key, its value, and the value that the weights ask for."""

    key: str
    given: Any
    wanted: Any

    @property
    def agrees(self) -> bool:
        """Equal; sequences of numbers: up to TOLERANCE."""
        if isinstance(self.wanted, list):
            try:
                given = [float(value) for value in self.given]
            except (TypeError, ValueError):
                return False
            return len(given) == len(self.wanted) and all(
                abs(a - b) <= TOLERANCE for a, b in zip(given, self.wanted, strict=True)
            )
        return self.given == self.wanted


def differing(settings: Sequence[Setting]) -> list[Setting]:
    """Those that do not agree."""
    return [setting for setting in settings if not setting.agrees]


def disagreement(key: str, url: ZooURL, settings: Sequence[Setting], fix: str) -> ConfigError:
    """The error for settings that differ.

    Args:
        key: where the URL stands in the config.
        fix: what sets all of them.
    """
    sides = "; ".join(f"{s.key} is {_shown(s.given)}, not {_shown(s.wanted)}" for s in settings)
    return ConfigError(
        key,
        f"{url.text} does not fit this config: {sides}. Set the keys to what the weights were "
        f"trained with (the second value), or let {fix} do it",
    )


def _shown(value: Any) -> str:
    return str(list(value)) if isinstance(value, (list, tuple)) else repr(value)
