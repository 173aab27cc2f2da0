"""The difference of two methods' AP, and how sure seeds make it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev, variance

from gradaug_det.errors import ConfigError
from gradaug_det.reports.rendering import with_sign

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Agreement:
    """The difference of two means over seeds.

    Args:
        difference: first minus second, in points of AP.
        pooled: standard deviation over seeds, pooled over both, in points of AP.
        low, high: Welch's 95 % confidence interval of the difference.
    """

    difference: float
    pooled: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{with_sign(self.difference)} [{with_sign(self.low)}, {with_sign(self.high)}]"


def mean_text(values: Sequence[float]) -> str:
    """Returns the mean with one digit, and the standard deviation if there is one."""
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):.1f}{spread}" if values else ""


def agreement(first: Sequence[float], second: Sequence[float]) -> Agreement:
    """Compare the values of two methods, one a seed.

    Welch's interval takes the seeds of the two as independent and their spreads as unequal.

    Raises:
        ConfigError: fewer than two seeds: there is no spread.
    """
    from scipy import stats

    counts = len(first), len(second)
    if min(counts) < 2:
        raise ConfigError("seeds", f"are {counts[0]} and {counts[1]}; a spread needs two or more")
    variances = variance(first), variance(second)
    pooled = math.sqrt(
        sum(v * (n - 1) for v, n in zip(variances, counts, strict=True)) / (sum(counts) - 2)
    )
    # Welch's, not Student's: GradAug spreads its seeds otherwise than plain fine-tuning does.
    difference = fmean(first) - fmean(second)
    low = high = difference
    if pooled:  # without any spread the interval is a point, which SciPy calls NaN
        interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(CONFIDENCE)
        low, high = float(interval.low), float(interval.high)
    return Agreement(difference, pooled, low, high)
