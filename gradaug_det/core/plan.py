"""The channels of a module that are cut together, and how many are left at a width.

Source: GradAug, section 3.1 and the authors' implementation (channel counts).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from gradaug_det.errors import ConfigError

NORM_POLICIES = ("auto", "batch", "frozen")


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that several tensors share and that are therefore cut together."""

    channels: int  # at full width
    residual: bool = False  # tied by residual additions: a block's output, not its inside
    quantum: int = 1  # kept in multiples of this: one group of a convolution or a group norm
    fixed: bool = False  # never cut: the image, predictions, what a part kept whole reads
    entries: int = 1  # in a row for each channel: as many as pixels, where a map was flattened

    def at(self, width: float, divisor: int = 1) -> int:
        """Returns how many entries are kept: those of a number of channels by the authors' rule
        (half rounds up, not to even), or of the nearest multiple of ``divisor``."""
        return self.entries * self._channels(width, divisor)

    def _channels(self, width: float, divisor: int) -> int:
        if self.fixed or width == 1:
            return self.channels
        if divisor > 1:
            step = math.lcm(self.quantum, divisor)
            return min(self.channels, step * max(1, math.floor(self.channels * width / step + 0.5)))
        if self.quantum > 1:
            return self.quantum * max(1, math.floor(self.channels / self.quantum * width + 0.5))
        if self.residual:
            return max(1, math.floor(self.channels * width + 0.5))
        # Inside a bottleneck the authors take a quarter of the rounded block output.
        return max(1, math.floor(math.floor(4 * self.channels * width + 0.5) / 4))


@dataclass(frozen=True)
class SlimPlan:
    """Says which dimension of which tensor of a module belongs to which group of channels."""

    groups: tuple[ChannelGroup, ...]
    # Parameter or buffer name -> index into ``groups`` (or None) of each dimension.
    tensors: dict[str, tuple[int | None, ...]]
    # (Module name, attribute) -> index into ``groups``, and channels that count as one, for
    # attributes that count (``Conv2d.groups``, ``GroupNorm.num_groups``).
    counts: dict[tuple[str, str], tuple[int, int]]
    # Group of each output tensor, None without channels; of a detector, none at all.
    outputs: tuple[int | None, ...]
    batch_norms: tuple[str, ...]  # names of the modules that can use batch statistics
    has_frozen_norms: bool  # norms with statistics that are never the batch's

    def channels(self, width: float, divisor: int = 1) -> tuple[int, ...]:
        """Returns the entries of each group at ``width``."""
        return tuple(group.at(width, divisor) for group in self.groups)

    def tensor_shape(
        self, name: str, full_shape: torch.Size, width: float, divisor: int = 1
    ) -> tuple[int, ...]:
        """Returns the shape of the named tensor's slice at ``width``."""
        dims = self.tensors.get(name, (None,) * len(full_shape))
        return tuple(
            size if group is None else self.groups[group].at(width, divisor)
            for size, group in zip(full_shape, dims, strict=True)
        )

    def check_norm(self, norm: str) -> None:
        """Raises ConfigError if the policy does not exist or does not fit the module's norms."""
        if norm not in NORM_POLICIES:
            raise ConfigError("subnet_norm", f"must be one of {NORM_POLICIES}, got {norm!r}")
        if norm == "batch" and self.has_frozen_norms and not self.batch_norms:
            raise ConfigError(
                "subnet_norm",
                "is 'batch', which needs BatchNorm layers, but every norm of this backbone is a "
                "frozen one; use 'frozen' (or 'auto'), or build the backbone with BN or SyncBN",
            )

    def check_divisor(self, divisor: int, width: float) -> None:
        """Raises ConfigError if it is so large that nothing is left out at the width."""
        if width < 1 < divisor and self.channels(width, divisor) == self.channels(1):
            raise ConfigError(
                "divisor",
                f"must be smaller, got {divisor}: in its multiples, all channels are kept at width "
                f"{width:g}",
            )


def flatten_output(output: Any) -> tuple[list[Tensor], Any]:
    """Returns the tensors of a (nested) dict, list or tuple, and what puts new ones in place."""
    leaves, spec = tree_flatten(output)
    return leaves, lambda new: tree_unflatten(new, spec)
