"""Which sub-networks one step trains: a pure function of (seed, iteration, index).

Nothing is drawn from a generator that has a state, so a resumed training samples what the
uninterrupted one would have, and all ranks of a distributed training agree without talking.

Source: GradAug, Algorithm 1 ("sample n sub-networks", "the smallest always among them").
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from gradaug_det.core.checks import check_integer, check_number, check_width
from gradaug_det.core.transforms import BatchTransform
from gradaug_det.errors import ConfigError
from gradaug_det.utils.seeding import stable_seed


@dataclass(frozen=True)
class SubNetwork:
    """One sub-network of one step: its width and what is done to the batch it sees."""

    index: int
    width: float
    transform: BatchTransform
    seed: int = 0
    """Of the random numbers that the pass itself draws (skipped blocks, proposal sampling)."""
    block_survival: float = 1.0
    """Probability that its last residual branch is kept; see :mod:`gradaug_det.core.depth`."""
    iteration: int = 0
    """Of the step, counted from 0."""
    divisor: int = 1
    """Its channel counts are multiples of this; see :func:`gradaug_det.core.slimming.at_width`."""


@dataclass(frozen=True)
class SubNetworkSampler:
    """Samples each step's sub-networks.

    Args:
        num_subnets: n, sub-networks a step; 0 leaves plain training.
        min_width: alpha, the smallest width, in (0, 1]; the last sub-network always has it, the
            others are uniform in [alpha, 1].
        scales: image scales to choose from, relative to the batch (1 keeps its size), in (0, 4].
        flip_prob: probability that a sub-network sees the batch mirrored left to right, in [0, 1].
        seed: the same seed samples the same sub-networks.
        block_survival: probability that a sub-network keeps the last residual branch, in [0, 1];
            1 keeps all. With ``min_width`` 1 sub-networks differ by depth alone.
        divisor: channel counts of sub-networks are multiples of this, 1 or more.

    Raises:
        ConfigError: names the argument, its value and the values allowed.
    """

    num_subnets: int = 3
    min_width: float = 0.9
    scales: Sequence[float] = (1.0, 0.857, 0.714, 0.571)
    flip_prob: float = 0.0
    seed: int = 0
    block_survival: float = 1.0
    divisor: int = 1

    def __post_init__(self) -> None:
        check_integer("num_subnets", self.num_subnets, low=0)
        check_width(self.min_width, "min_width")
        if isinstance(self.scales, str) or not isinstance(self.scales, Sequence) or not self.scales:
            raise ConfigError(
                "scales",
                f"must list at least one number, got {self.scales!r}; [1.0] never rescales",
            )
        for scale in self.scales:
            check_number("scales", scale, high=4.0, above=0.0)
        check_number("flip_prob", self.flip_prob, high=1.0)
        check_integer("seed", self.seed)
        check_number("block_survival", self.block_survival, high=1.0)
        check_integer("divisor", self.divisor, low=1)

    def sample(self, iteration: int) -> list[SubNetwork]:
        """The sub-networks of one step, in the order in which they run."""
        return [self._sample_one(iteration, index) for index in range(self.num_subnets)]

    def _sample_one(self, iteration: int, index: int) -> SubNetwork:
        rng = random.Random(stable_seed("sub-network", self.seed, iteration, index))
        width = rng.uniform(self.min_width, 1.0)
        scale = rng.choice(list(self.scales))
        flip = rng.random() < self.flip_prob
        if index == self.num_subnets - 1:
            width = self.min_width
        noise = stable_seed("noise", self.seed, iteration, index)
        transform = BatchTransform(float(scale), flip)
        survival = float(self.block_survival)
        return SubNetwork(index, float(width), transform, noise, survival, iteration, self.divisor)
