"""Sub-networks of a step: in range, the smallest among them, decided by (seed, t, i) alone."""

import random
from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.sampling import sample_sub_networks
from gradaug_det.utils.seeding import stable_seed
from tests.properties import FIXED

OPTIONS = st.builds(
    GradAugOptions,
    num_subnets=st.integers(0, 6),
    min_width=st.floats(0.01, 1.0),
    scales=st.lists(st.floats(0.01, 4.0), min_size=1, max_size=4).map(tuple),
    flip_prob=st.floats(0.0, 1.0),
    seed=st.integers(-(2**70), 2**70),
    block_survival=st.floats(0.0, 1.0),
    divisor=st.integers(1, 64),
)
STEPS = st.integers(0, 2**40)


@FIXED
@given(OPTIONS, STEPS)
def test_widths_scales_and_the_smallest(options, step):
    found = sample_sub_networks(options, step)
    assert [sub.index for sub in found] == list(range(options.num_subnets))
    for sub in found:
        assert options.min_width <= sub.width <= 1
        assert sub.transform.scale in options.scales
        assert (sub.iteration, sub.divisor) == (step, options.divisor)
        assert sub.block_survival == options.block_survival
        assert not (sub.transform.flip and options.flip_prob == 0)
        assert sub.transform.flip or options.flip_prob < 1
        assert 0 <= sub.seed < 2**63
    if found:
        assert min(sub.width for sub in found) == found[-1].width == options.min_width


@FIXED
@given(OPTIONS, STEPS, st.integers(0, 2**32 - 1))
def test_nothing_but_seed_step_and_index_decides(options, step, noise):
    first = sample_sub_networks(options, step)
    torch.manual_seed(noise)
    random.seed(noise)
    sample_sub_networks(options, step + 1)
    assert sample_sub_networks(options, step) == first
    same = replace(options, num_subnets=options.num_subnets + 1)
    # A sub-network more changes no other, except that the smallest one is the last.
    assert sample_sub_networks(same, step)[: max(0, len(first) - 1)] == first[:-1]


@FIXED
@given(st.integers(), st.integers(0, 10**9))
def test_seeds_are_stable_and_differ(seed, step):
    seeds = {stable_seed("noise", seed, step + t, i) for t in range(4) for i in range(4)}
    assert len(seeds) == 16
    assert stable_seed("noise", seed, step, 0) == stable_seed("noise", seed, step, 0)


def test_seeds_are_those_of_every_machine():
    assert stable_seed("sub-network", 0, 0, 0) == stable_seed("sub-network", "0", "0", "0")
    widths = [sub.width for sub in sample_sub_networks(GradAugOptions(seed=7), 3)]
    assert widths == [sub.width for sub in sample_sub_networks(GradAugOptions(seed=7), 3)]
    assert widths != [sub.width for sub in sample_sub_networks(GradAugOptions(seed=8), 3)]
