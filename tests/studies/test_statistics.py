"""Differences of two methods against the spread of their seeds."""

import math

import pytest

from gradaug_det.errors import ConfigError
from studies.report.statistics import agreement


def test_the_numbers_are_welchs():
    """By hand: means 5 and 6, variances 1 and 4, so t with 50/17 degrees of freedom."""
    result = agreement([4.0, 5.0, 6.0], [4.0, 6.0, 8.0])
    assert result.difference == -1
    assert result.pooled == pytest.approx(math.sqrt(2.5))
    # Standard error sqrt(1/3 + 4/3); the 97.5 % point of t with 50/17 degrees of freedom.
    half = math.sqrt(5 / 3) * 3.2187
    assert (result.low, result.high) == pytest.approx((-1 - half, -1 + half), abs=1e-3)


def test_the_order_changes_signs_only():
    one, other = [3.1, 3.9, 3.3, 4.0], [5.0, 4.1, 4.6]
    ours, theirs = agreement(one, other), agreement(other, one)
    assert ours.difference == pytest.approx(-theirs.difference)
    assert (ours.low, ours.high) == pytest.approx((-theirs.high, -theirs.low))
    assert ours.pooled == theirs.pooled


def test_no_spread_at_all():
    same = agreement([5.0, 5.0], [5.0, 5.0])
    assert (same.low, same.high, same.pooled) == (0, 0, 0)
    apart = agreement([5.0, 5.0], [6.0, 6.0])
    assert (apart.low, apart.high) == (-1, -1)


def test_one_seed_has_no_spread():
    with pytest.raises(ConfigError, match="seeds are 1 and 3; a spread needs two or more"):
        agreement([5.0], [4.0, 5.0, 6.0])
