"""Which sub-networks one step trains: a pure function of (seed, iteration, index).

Nothing is drawn from a generator that has a state, so a resumed training samples what the
uninterrupted one would have, and all ranks of a distributed training agree without talking.

Source: GradAug, Algorithm 1 ("sample n sub-networks", "the smallest always among them").
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.transforms import BatchTransform
from gradaug_det.utils.seeding import stable_seed


@dataclass(frozen=True)
class SubNetwork:
    """One sub-network of one step: its width and what is done to the batch it sees."""

    index: int
    width: float
    transform: BatchTransform
    seed: int = 0  # of the random numbers that the pass itself draws (skipped blocks, proposals)
    block_survival: float = 1.0  # see core.depth.at_depth
    iteration: int = 0  # the step, counted from 0
    divisor: int = 1  # see core.slimming.at_width


def sample_sub_networks(options: GradAugOptions, iteration: int) -> list[SubNetwork]:
    """Returns the sub-networks of one step, in the order in which they run."""
    return [_sample_one(options, iteration, index) for index in range(options.num_subnets)]


def _sample_one(options: GradAugOptions, iteration: int, index: int) -> SubNetwork:
    rng = random.Random(stable_seed("sub-network", options.seed, iteration, index))
    width = rng.uniform(options.min_width, 1.0)
    scale = rng.choice(options.scales)
    flip = rng.random() < options.flip_prob
    # Drawn for the smallest one too: its scale must not depend on how many there are.
    if index == options.num_subnets - 1:
        width = options.min_width
    return SubNetwork(
        index,
        float(width),
        BatchTransform(float(scale), flip),
        stable_seed("noise", options.seed, iteration, index),
        float(options.block_survival),
        iteration,
        options.divisor,
    )
