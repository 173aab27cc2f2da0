"""Sub-networks of a step: in range, the smallest among them, decided by (seed, t, i) alone."""

import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from gradaug_det.core.sampling import SubNetworkSampler
from gradaug_det.utils.seeding import stable_seed
from tests.properties import FIXED

SAMPLERS = st.builds(
    SubNetworkSampler,
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
@given(SAMPLERS, STEPS)
def test_widths_scales_and_the_smallest(sampler, step):
    found = sampler.sample(step)
    assert [sub.index for sub in found] == list(range(sampler.num_subnets))
    for sub in found:
        assert sampler.min_width <= sub.width <= 1
        assert sub.transform.scale in sampler.scales
        assert (sub.iteration, sub.divisor) == (step, sampler.divisor)
        assert sub.block_survival == sampler.block_survival
        assert not (sub.transform.flip and sampler.flip_prob == 0)
        assert sub.transform.flip or sampler.flip_prob < 1
        assert 0 <= sub.seed < 2**63
    if found:
        assert min(sub.width for sub in found) == found[-1].width == sampler.min_width


@FIXED
@given(SAMPLERS, STEPS, st.integers(0, 2**32 - 1))
def test_nothing_but_seed_step_and_index_decides(sampler, step, noise):
    first = sampler.sample(step)
    torch.manual_seed(noise)
    random.seed(noise)
    sampler.sample(step + 1)
    assert sampler.sample(step) == first
    same = SubNetworkSampler(
        sampler.num_subnets + 1,
        *(sampler.min_width, sampler.scales, sampler.flip_prob, sampler.seed),
        *(sampler.block_survival, sampler.divisor),
    )
    # A sub-network more changes no other, except that the smallest one is the last.
    assert same.sample(step)[: max(0, len(first) - 1)] == first[:-1]


@FIXED
@given(st.integers(), st.integers(0, 10**9))
def test_seeds_are_stable_and_differ(seed, step):
    seeds = {stable_seed("noise", seed, step + t, i) for t in range(4) for i in range(4)}
    assert len(seeds) == 16
    assert stable_seed("noise", seed, step, 0) == stable_seed("noise", seed, step, 0)


def test_seeds_are_those_of_every_machine():
    assert stable_seed("sub-network", 0, 0, 0) == stable_seed("sub-network", "0", "0", "0")
    widths = [sub.width for sub in SubNetworkSampler(seed=7).sample(3)]
    assert widths == [sub.width for sub in SubNetworkSampler(seed=7).sample(3)]
    assert widths != [sub.width for sub in SubNetworkSampler(seed=8).sample(3)]
