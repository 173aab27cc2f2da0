"""Which widths a framework's config can express: those that keep one share of all layers.

A config has one number for the channels of a ResNet, from which every stage's follow by doubling.
The rule of sub-networks rounds layer by layer: at width 0.9, 64 and 128 channels become 58 and
115, which no config says. At 0.875 they become 56 and 112.
"""

from __future__ import annotations

import math
from fractions import Fraction

from gradaug_det.core.checks import check_width
from gradaug_det.core.plan import ChannelGroup, SlimPlan
from gradaug_det.errors import ConfigError


def share_of_channels(plan: SlimPlan, width: float) -> Fraction:
    """The one share of channels that all layers keep at ``width``.

    Raises:
        ConfigError: the width is none, or layers keep different shares: names the nearest widths
            at which they do not.
    """
    check_width(width, "--width")
    share = _common_share(plan, width)
    if share is not None:
        return share
    ratios = expressible_widths(plan)
    below = max((r for r in ratios if r < width), default=None)
    above = min((r for r in ratios if r > width), default=None)
    nearest = " or ".join(f"{float(ratio):g}" for ratio in (below, above) if ratio is not None)
    group, other = _unequal(plan, width)
    raise ConfigError(
        "--width",
        f"{width:g} cannot be exported: layers of {group.channels} channels keep "
        f"{group.at(width)} and those of {other.channels} keep {other.at(width)}, and a config "
        f"has one number for all; the nearest widths that it can express are {nearest}",
    )


def expressible_widths(plan: SlimPlan) -> list[Fraction]:
    """All widths at which every layer keeps the same share, from small to 1."""
    units = math.gcd(*(group.channels // group.quantum for group in _cut(plan)))
    ratios = (Fraction(count, units) for count in range(1, units + 1))
    return [ratio for ratio in ratios if _common_share(plan, float(ratio)) == ratio]


def scaled(key: str, channels: int, share: Fraction) -> int:
    """The config's number of channels (or of groups of them) in the narrow network.

    Args:
        key: the config's.
        channels: its value for the full network.

    Raises:
        ConfigError: the share of it is no whole number.
    """
    if (channels * share).denominator != 1:
        raise ConfigError(
            key,
            f"is {channels}, of which {float(share):g} is {float(channels * share):g}, no whole "
            f"number; take a --width that is a multiple of 1/{channels}",
        )
    return int(channels * share)


def _cut(plan: SlimPlan) -> list[ChannelGroup]:
    return [group for group in plan.groups if not group.fixed]


def _common_share(plan: SlimPlan, width: float) -> Fraction | None:
    shares = {Fraction(group.at(width), group.channels) for group in _cut(plan)}
    return shares.pop() if len(shares) == 1 else None


def _unequal(plan: SlimPlan, width: float) -> tuple[ChannelGroup, ChannelGroup]:
    first, *others = _cut(plan)
    share = Fraction(first.at(width), first.channels)
    other = next(g for g in others if Fraction(g.at(width), g.channels) != share)
    return first, other
