"""Which sub-networks one step trains: a pure function of (seed, iteration, index).

Nothing is drawn from a generator that has a state, so a resumed training samples what the
uninterrupted one would have, and all ranks of a distributed training agree without talking.

Source: GradAug, Algorithm 1 ("sample n sub-networks", "the smallest always among them").
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from gradaug_det.core.slimming import check_width
from gradaug_det.core.transforms import BatchTransform
from gradaug_det.errors import ConfigError


@dataclass(frozen=True)
class SubNetwork:
    """One sub-network of one step: its width and what is done to the batch it sees."""

    index: int
    width: float
    transform: BatchTransform


def stable_seed(*parts: object) -> int:
    """A 63-bit seed that depends on nothing but the parts, on any machine and Python."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


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

    Raises:
        ConfigError: names the argument, its value and the values allowed.
    """

    num_subnets: int = 3
    min_width: float = 0.9
    scales: Sequence[float] = (1.0, 0.857, 0.714, 0.571)
    flip_prob: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.num_subnets, bool) or not isinstance(self.num_subnets, int):
            raise ConfigError(f"num_subnets must be an integer, got {self.num_subnets!r}")
        if self.num_subnets < 0:
            raise ConfigError(f"num_subnets must be at least 0, got {self.num_subnets}")
        check_width(self.min_width, "min_width")
        if isinstance(self.scales, str) or not len(self.scales):
            raise ConfigError(
                f"scales must list at least one number, got {self.scales!r}; [1.0] never rescales"
            )
        for scale in self.scales:
            if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale <= 4:
                raise ConfigError(f"scales must be numbers in (0, 4], got {scale!r}")
        if not isinstance(self.flip_prob, (int, float)) or not 0 <= self.flip_prob <= 1:
            raise ConfigError(f"flip_prob must be in [0, 1], got {self.flip_prob!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigError(f"seed must be an integer, got {self.seed!r}")

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
        return SubNetwork(index, float(width), BatchTransform(float(scale), flip))


@contextmanager
def isolated_rng(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """torch's random numbers within the block come from ``seed``; outside they are untouched.

    A sub-network's dropout or proposal sampling therefore neither shifts the full network's nor
    depends on where a training was resumed.
    """
    device = torch.device(device)
    devices = [device] if device.type != "cpu" else []
    kind = device.type if devices else "cuda"
    with torch.random.fork_rng(devices=devices, device_type=kind):
        torch.manual_seed(seed)
        yield
