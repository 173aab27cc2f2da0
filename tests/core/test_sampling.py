"""Widths and transforms depend on (seed, iteration, index) alone."""

import random
import re
from dataclasses import replace

import pytest
import torch

from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.sampling import FULL, WINDOW, sample_own_pass, sample_sub_networks
from gradaug_det.errors import ConfigError
from gradaug_det.utils.seeding import isolated_rng, stable_seed

RECORDED = [(0.997571770939, 1.0, True), (0.919268873536, 0.714, True), (0.9, 0.857, True)]
RECORDED_SEED = 4294491576641134471


def test_recorded_values():
    """Other numbers here would break the exact resume of trainings under way."""
    subs = sample_sub_networks(
        GradAugOptions(3, 0.9, (1.0, 0.857, 0.714, 0.571), 0.5, seed=7), 1000
    )
    assert [round(s.width, 12) for s in subs] == [RECORDED[0][0], RECORDED[1][0], 0.9]
    assert [s.transform.scale for s in subs] == [r[1] for r in RECORDED]
    assert [s.transform.flip for s in subs] == [r[2] for r in RECORDED]
    assert stable_seed("a", 1) == RECORDED_SEED


def test_stateless():
    options = GradAugOptions(3, 0.8, (1.0, 0.5), 0.5, seed=1)
    forward = [sample_sub_networks(options, t) for t in range(20)]
    random.seed(0)
    torch.manual_seed(0)
    assert [sample_sub_networks(options, t) for t in reversed(range(20))] == forward[::-1]
    # n does not change the sub-networks before the last one
    assert (
        sample_sub_networks(GradAugOptions(5, 0.8, (1.0, 0.5), 0.5, seed=1), 3)[:2]
        == forward[3][:2]
    )
    assert sample_sub_networks(GradAugOptions(3, 0.8, (1.0, 0.5), 0.5, seed=2), 0) != forward[0]


def test_distribution():
    options = GradAugOptions(3, 0.8, (1.0, 0.5, 0.25), 0.25, seed=0)
    subs = [s for t in range(2000) for s in sample_sub_networks(options, t)]
    widths = [s.width for s in subs if s.index < 2]
    assert all(s.width == 0.8 for s in subs if s.index == 2)
    assert 0.8 <= min(widths) < 0.805
    assert 0.995 < max(widths) <= 1
    assert sum(widths) / len(widths) == pytest.approx(0.9, abs=0.005)
    for scale in (1.0, 0.5, 0.25):
        share = sum(s.transform.scale == scale for s in subs) / len(subs)
        assert share == pytest.approx(1 / 3, abs=0.03)
    assert sum(s.transform.flip for s in subs) / len(subs) == pytest.approx(0.25, abs=0.03)


def test_no_sub_networks():
    assert sample_sub_networks(GradAugOptions(num_subnets=0), 5) == []


ALTERNATING = GradAugOptions(passes="alternating", seed=7)


def test_alternating_passes_follow_their_shares_in_each_window():
    # Another order would break the exact resume of trainings under way.
    recorded = "1 0.75 0.5 1 1 1 0.875 1 1 1 1 1 1 0.5 1 1 0.5 1 1 1 1 0.75 1 1"
    passes = [sample_own_pass(ALTERNATING, t) for t in range(40 * WINDOW)]
    widths = [one.width for one in passes]
    assert " ".join(f"{width:g}" for width in widths[:WINDOW]) == recorded
    assert widths[WINDOW : 2 * WINDOW] != widths[:WINDOW]
    for start in range(0, len(widths), WINDOW):
        own = widths[start : start + WINDOW]
        assert (own.count(1), own.count(0.5)) == (18, 3)
        assert {own.count(0.875), own.count(0.75)} == {1, 2}
    assert widths.count(0.875) == pytest.approx(60, abs=10)
    assert [one.name for one in passes[:3]] == ["w1", "w0.75", "w0.5"]
    assert sample_sub_networks(ALTERNATING, 5) == []
    assert sample_own_pass(GradAugOptions(seed=7), 5) == FULL


def test_alternating_widths_are_another_training_with_another_seed():
    other = replace(ALTERNATING, seed=8, full_share=0.5, smallest_share=1.0)
    widths = [sample_own_pass(other, t).width for t in range(WINDOW)]
    assert sorted(set(widths)) == [0.5, 1.0] and widths.count(0.5) == WINDOW // 2
    one = replace(ALTERNATING, widths=[0.25], smallest_share=0.0)
    assert {sample_own_pass(one, t).width for t in range(WINDOW)} == {0.25, 1.0}
    assert sum(ALTERNATING.shares.values()) == sum(one.shares.values()) == 1


def test_sub_networks_from_an_iteration_to_another():
    for options in (ALTERNATING, GradAugOptions(2, seed=7)):
        some = replace(options, start=5, stop=40)
        for t in (0, 4, 40, 1000):
            assert sample_own_pass(some, t) == FULL and sample_sub_networks(some, t) == []
        for t in range(5, 40):
            assert sample_own_pass(some, t) == sample_own_pass(options, t)
            assert sample_sub_networks(some, t) == sample_sub_networks(options, t)
    assert replace(some, stop=0).has_sub_networks(10**6)
    with pytest.raises(ConfigError, match="stop must be above start, 5, or 0, got 5"):
        replace(some, stop=5)


def test_added_passes_of_fixed_widths():
    options = GradAugOptions(3, widths=(0.5, 0.75, 0.875, 0.75))
    assert options.widths == (0.875, 0.75, 0.5)
    subs = [s for t in range(200) for s in sample_sub_networks(options, t)]
    assert {s.width for s in subs if s.index == 2} == {0.5}
    counts = [sum(s.width == w for s in subs if s.index < 2) for w in options.widths]
    assert min(counts) > 100 and sum(counts) == 400


BAD = [
    ("num_subnets", -1, "an integer of at least 0"),
    ("num_subnets", 1.5, "an integer of at least 0"),
    ("min_width", 0, r"\(0, 1\]"),
    ("min_width", 1.2, r"\(0, 1\]"),
    ("min_width", "0.9", r"\(0, 1\]"),
    ("scales", (), "at least one"),
    ("scales", "1.0", "at least one"),
    ("scales", (1.0, 0.0), r"\(0, 4\]"),
    ("scales", (5.0,), r"\(0, 4\]"),
    ("flip_prob", -0.1, r"\[0, 1\]"),
    ("flip_prob", 1.5, r"\[0, 1\]"),
    ("block_survival", 1.5, r"\[0, 1\]"),
    ("seed", "1", "an integer"),
    ("widths", (0.9, 0.0), r"\(0, 1\]"),
    ("widths", (1.0,), "below 1"),
    ("widths", 0.9, "list numbers"),
    ("full_share", -0.1, r"\[0, 1\]"),
    ("smallest_share", 1.5, r"\[0, 1\]"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), BAD)
def test_bad_settings_name_key_value_and_range(key, value, allowed):
    with pytest.raises(ConfigError, match=rf"^{key} must .*{allowed}.*got") as error:
        GradAugOptions(**{key: value})
    assert error.value.key == key
    if not isinstance(value, tuple):
        assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("supervision", "hard"),
        ("passes", "both"),
        ("subnet_norm", "bn"),
        ("soft_weight", -1),
        ("labels_weight", float("nan")),
        ("soft_warmup", -1),
        ("start", -1),
        ("stop", 1.5),
        ("log_period", -5),
        ("not_in_pixels", "gt_depth"),
        ("not_in_pixels", ["gt_depth", 1]),
    ],
)
def test_bad_options(key, value):
    with pytest.raises(ConfigError, match=rf"^{key} must be .*got {re.escape(repr(value))}"):
        GradAugOptions(**{key: value})


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"full_share": 0.5}, "full_share"),
        ({"smallest_share": 0.2}, "smallest_share"),
        ({"widths": [0.5], "min_width": 0.5}, "min_width"),
        ({"passes": "alternating", "num_subnets": 0}, "num_subnets"),
        ({"passes": "alternating", "supervision": "soft"}, "supervision"),
        ({"passes": "alternating", "scales": [1.0]}, "scales"),
        ({"passes": "alternating", "min_width": 0.5}, "min_width"),
    ],
)
def test_a_setting_that_would_do_nothing_is_an_error(options, key):
    with pytest.raises(ConfigError, match=f"^{key} must be left at its default, .*got "):
        GradAugOptions.from_mapping(options)


def test_unknown_option_names_the_nearest():
    with pytest.raises(ConfigError, match=r"num_subnet is not a GradAug setting.*'num_subnets'"):
        GradAugOptions.from_mapping({"num_subnet": 2})
    with pytest.raises(ConfigError, match="known are num_subnets, min_width"):
        GradAugOptions.from_mapping({"zzz": 2})


@pytest.mark.parametrize(
    ("options", "active"),
    [
        ({}, True),
        ({"num_subnets": 0}, False),
        ({"soft_weight": 0, "supervision": "soft"}, False),
        ({"soft_weight": 0, "supervision": "both"}, True),
        ({"labels_weight": 0, "supervision": "labels"}, False),
        ({"passes": "alternating"}, True),
        ({"passes": "alternating", "full_share": 1.0}, False),
    ],
)
def test_active(options, active):
    assert GradAugOptions(**options).active is active


@pytest.mark.parametrize(
    ("options", "width"),
    [
        ({}, 0.9),
        ({"num_subnets": 0}, 1.0),
        ({"passes": "alternating"}, 0.5),
        ({"passes": "alternating", "full_share": 1.0}, 1.0),
        ({"passes": "alternating", "smallest_share": 0.0}, 0.75),
    ],
)
def test_the_smallest_width_that_is_trained(options, width):
    assert GradAugOptions(**options).trained_width == width


def test_soft_weight_rises_in_equal_steps():
    options = GradAugOptions(soft_weight=2.0, soft_warmup=4)
    assert [options.soft_weight_at(i) for i in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    assert GradAugOptions(soft_weight=3.0).soft_weight_at(0) == 3.0
    assert [sub.iteration for sub in sample_sub_networks(options, 7)] == [7, 7, 7]


def test_isolated_rng():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    with isolated_rng(11):
        inside = torch.rand(4)
    assert torch.equal(torch.rand(4), expected)
    with isolated_rng(11):
        assert torch.equal(torch.rand(4), inside)
    with pytest.raises(ValueError), isolated_rng(12):
        torch.rand(1)
        raise ValueError
    assert torch.initial_seed() == 3
