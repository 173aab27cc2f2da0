"""Whether two methods that ought to be the same give the same AP, as far as seeds can tell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from gradaug_det.errors import ConfigError
from gradaug_det.reports.rendering import signed

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

    @property
    def within_spread(self) -> bool:
        """Whether the difference is not larger than the pooled standard deviation."""
        return abs(self.difference) <= self.pooled

    @property
    def compatible_with_none(self) -> bool:
        """Whether Welch's interval contains a difference of 0."""
        return self.low <= 0 <= self.high


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
    difference = fmean(first) - fmean(second)
    low = high = difference
    if pooled:  # without any spread the interval is a point, which SciPy calls NaN
        interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(CONFIDENCE)
        low, high = float(interval.low), float(interval.high)
    return Agreement(difference, pooled, low, high)


def agreement_sentence(what: str, result: Agreement) -> str:
    """The result in words.

    Args:
        what: the two and the metric, e.g. ``"Plain: Detectron2 minus MMDetection, box AP"``.
    """
    numbers = (
        f"{what}: {signed(result.difference)} points; pooled standard deviation over seeds "
        f"{result.pooled:.2f}; Welch's 95 % interval {signed(result.low)} to {signed(result.high)}."
    )
    if result.within_spread and result.compatible_with_none:
        return f"{numbers} The difference is within the seeds' spread."
    if result.compatible_with_none:
        return (
            f"{numbers} The difference is larger than the seeds' standard deviation, but the "
            "interval contains 0: these seeds do not show that they differ."
        )
    return f"{numbers} The interval does not contain 0: they differ by more than the seeds do."
