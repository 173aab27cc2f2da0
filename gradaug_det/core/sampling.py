"""Which widths one step trains: a pure function of (seed, iteration, index).

Nothing is drawn from a generator that has a state, so a resumed training samples what the
uninterrupted one would have, and all ranks of a distributed training agree without talking.

Source: GradAug, Algorithm 1 ("sample n sub-networks", "the smallest always among them"). Yu and
    Huang, Universally Slimmable Networks, 2019, for the sandwich rule (the largest, the smallest
    and random widths), which alternating passes follow over time.
"""

from __future__ import annotations

import random
from bisect import bisect
from dataclasses import dataclass, replace
from itertools import accumulate

from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.transforms import BatchTransform
from gradaug_det.utils.seeding import stable_seed

WINDOW = 24
"""Alternating passes in which each width has its share; that of many simple fractions is whole."""


@dataclass(frozen=True)
class SubNetwork:
    """One pass of one step: its width and what is done to the batch it sees."""

    index: int | None  # of an added pass; None for the framework's own
    width: float
    transform: BatchTransform
    seed: int = 0  # of the random numbers that the pass itself draws (skipped blocks, proposals)
    block_survival: float = 1.0  # see core.depth.at_depth
    iteration: int = 0  # the step, counted from 0
    divisor: int = 1  # see core.slimming.at_width

    @property
    def name(self) -> str:
        """Returns what its numbers are logged under."""
        return f"w{self.width:g}" if self.index is None else f"sub{self.index}"

    @property
    def scalars(self) -> dict[str, float]:
        """Returns what was drawn, for the log."""
        if self.index is None:
            return {"width": self.width}
        return {f"{self.name}/width": self.width, f"{self.name}/scale": self.transform.scale}


FULL = SubNetwork(None, 1.0, BatchTransform())
"""The full network's pass."""


def sample_own_pass(options: GradAugOptions, iteration: int) -> SubNetwork:
    """Returns the pass that the framework runs itself: the full network's, but for narrow steps of
    alternating passes."""
    if options.passes != "alternating" or not options.has_sub_networks(iteration):
        return FULL
    width = _alternating_width(options, iteration)
    return replace(FULL, width=width, iteration=iteration, divisor=options.divisor)


def _alternating_width(options: GradAugOptions, iteration: int) -> float:
    window, place = divmod(iteration, WINDOW)
    rng = random.Random(stable_seed("width", options.seed, window))
    # One point in each of the window's equal parts of [0, 1), in a drawn order, all shifted alike:
    # each width has its share of every window, rounded up or down, and exactly so on average.
    point = (rng.sample(range(WINDOW), WINDOW)[place] + rng.random()) / WINDOW
    widths, shares = zip(*options.shares.items(), strict=True)
    return widths[min(bisect(list(accumulate(shares)), point), len(widths) - 1)]


def sample_sub_networks(options: GradAugOptions, iteration: int) -> list[SubNetwork]:
    """Returns the sub-networks whose passes are added, in the order in which they run."""
    takes_part = options.passes == "added" and options.has_sub_networks(iteration)
    count = options.num_subnets if takes_part else 0
    return [_sample_one(options, iteration, index) for index in range(count)]


def _sample_one(options: GradAugOptions, iteration: int, index: int) -> SubNetwork:
    rng = random.Random(stable_seed("sub-network", options.seed, iteration, index))
    width = rng.choice(options.widths) if options.widths else rng.uniform(options.min_width, 1.0)
    scale = rng.choice(options.scales)
    flip = rng.random() < options.flip_prob
    # Drawn for the smallest one too: its scale must not depend on how many there are.
    if index == options.num_subnets - 1:
        width = options.smallest_width
    return SubNetwork(
        index,
        float(width),
        BatchTransform(float(scale), flip),
        stable_seed("noise", options.seed, iteration, index),
        float(options.block_survival),
        iteration,
        options.divisor,
    )
