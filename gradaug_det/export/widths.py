"""The widths that a framework's config can express: they keep one share of all layers.

A config has one number for the channels of a ResNet, from which every stage's follow by doubling.
The rule of sub-networks rounds layer by layer: at width 0.9, 64 and 128 channels become 58 and
115, which no config says. At 0.875 they become 56 and 112. So do the channels of neck and heads.
"""

from __future__ import annotations

import math
from fractions import Fraction

from gradaug_det.core.checks import check_width
from gradaug_det.core.plan import SlimPlan
from gradaug_det.errors import ConfigError


def share_of_channels(plan: SlimPlan, width: float, divisor: int = 1) -> Fraction:
    """Returns the one share of channels that all layers keep at a width.

    Args:
        divisor: see :func:`gradaug_det.core.slimming.at_width`.

    Raises:
        ConfigError: the width is none, or layers keep different shares: names the nearest widths
            at which they do not.
    """
    check_width(width, "--width")
    shares = _shares(plan, width, divisor)
    if len(shares) == 1:
        return next(iter(shares))
    possible = expressible_widths(plan, divisor)
    below, above = [w for w in possible if w < width][-1:], [w for w in possible if w > width][:1]
    (one, kept), (other, others_kept) = list(shares.values())[:2]
    raise ConfigError(
        "--width",
        f"{width:g} cannot be exported: layers of {one} channels keep {kept} and those of {other} "
        f"keep {others_kept}, and a config has one number for all; the nearest widths that it can "
        f"express are {' or '.join(f'{float(w):g}' for w in below + above)}",
    )


def expressible_widths(plan: SlimPlan, divisor: int = 1) -> list[Fraction]:
    """Returns all widths at which every layer keeps the same share, from small to 1."""
    # A finer share than one of these units gives some layer a fraction of a channel.
    units = math.gcd(*(group.channels // group.quantum for group in plan.groups if not group.fixed))
    widths = [Fraction(count, units) for count in range(1, units + 1)]
    return [width for width in widths if list(_shares(plan, float(width), divisor)) == [width]]


def _shares(plan: SlimPlan, width: float, divisor: int) -> dict[Fraction, tuple[int, int]]:
    """Returns the shares that layers keep, each with the channels and those kept of one of them."""
    groups = [group for group in plan.groups if not group.fixed]
    counts = [(group.at(1), group.at(width, divisor)) for group in groups]
    return {Fraction(kept, channels): (channels, kept) for channels, kept in counts}


def scale_channels(key: str, channels: int, share: Fraction) -> int:
    """Returns the config's number of channels (or of groups of them) in the narrow network.

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
