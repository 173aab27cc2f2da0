"""Differences of two methods against the spread of their seeds."""

import math

import pytest

from gradaug_det.errors import ConfigError
from studies.report.statistics import agreement, agreement_sentence


def test_the_numbers_are_welchs():
    """By hand: means 5 and 6, variances 1 and 4, so t with 50/17 degrees of freedom."""
    result = agreement([4.0, 5.0, 6.0], [4.0, 6.0, 8.0])
    assert result.difference == -1
    assert result.pooled == pytest.approx(math.sqrt(2.5))
    # Standard error sqrt(1/3 + 4/3); the 97.5 % point of t with 50/17 degrees of freedom.
    half = math.sqrt(5 / 3) * 3.2187
    assert (result.low, result.high) == pytest.approx((-1 - half, -1 + half), abs=1e-3)
    assert result.within_spread and result.compatible_with_none


def test_the_order_changes_signs_only():
    one, other = [3.1, 3.9, 3.3, 4.0], [5.0, 4.1, 4.6]
    ours, theirs = agreement(one, other), agreement(other, one)
    assert ours.difference == pytest.approx(-theirs.difference)
    assert (ours.low, ours.high) == pytest.approx((-theirs.high, -theirs.low))
    assert ours.pooled == theirs.pooled


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        ([4.0, 5.0, 6.0], [4.5, 5.5, 6.5], "The difference is within the seeds' spread."),
        ([4.0, 5.0, 6.0], [5.5, 6.5, 7.5], "these seeds do not show that they differ."),
        ([4.0, 4.1, 4.2], [9.0, 9.1, 9.2], "they differ by more than the seeds do."),
    ],
)
def test_the_verdict(first, second, verdict):
    sentence = agreement_sentence("A minus B", agreement(first, second))
    assert sentence.startswith("A minus B: \N{MINUS SIGN}") and sentence.endswith(verdict)


def test_no_spread_at_all():
    same = agreement([5.0, 5.0], [5.0, 5.0])
    assert (same.low, same.high) == (0, 0) and same.within_spread
    apart = agreement([5.0, 5.0], [6.0, 6.0])
    assert not apart.within_spread and not apart.compatible_with_none


def test_one_seed_has_no_spread():
    with pytest.raises(ConfigError, match="seeds are 1 and 3; a spread needs two or more"):
        agreement([5.0], [4.0, 5.0, 6.0])
