"""Sub-networks by random depth: residual blocks that are skipped, the alternative to width.

Source: the authors' ``resnet_randdepth`` (GradAug by random depth); unlike theirs, the full network
is not scaled down at test time, since it never skips a branch. Huang et al., Deep Networks with
Stochastic Depth, 2016, for the probabilities.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from gradaug_det.core.checks import check_number
from gradaug_det.core.slimming import Overrides
from gradaug_det.errors import UnslimmableError

# A residual block's shortcut in torchvision, timm and MMDetection; in Detectron2.
_SHORTCUTS = ("downsample", "shortcut")


def residual_blocks(module: nn.Module) -> list[nn.Module]:
    """Returns the residual blocks of a ResNet in order: ReLU(residual branch + shortcut).

    Raises:
        UnslimmableError: there are none.
    """
    blocks = [m for m in module.modules() if any(hasattr(m, name) for name in _SHORTCUTS)]
    if not blocks:
        raise UnslimmableError(
            f"{type(module).__name__} has no residual blocks (layers with an attribute "
            f"{' or '.join(map(repr, _SHORTCUTS))}), which sub-networks by depth skip"
        )
    return blocks


def survival_probabilities(count: int, last: float) -> list[float]:
    """Returns a linear decay: 1 for the first of ``count`` blocks, ``last`` for the last one.

    Source: Stochastic Depth, equation 4; the authors of GradAug use it with ``last`` = 0.8.
    """
    return [1 - index / max(1, count - 1) * (1 - last) for index in range(count)]


@contextmanager
def at_depth(module: nn.Module, block_survival: float, seed: int) -> Iterator[nn.Module]:
    """Within the block, ``module`` is a sub-network that skips some residual branches.

    Args:
        module: a ResNet of torchvision, timm, MMDetection or Detectron2.
        block_survival: probability that the last residual branch is kept, in [0, 1]; 1 keeps all.
        seed: decides which are kept.

    Raises:
        ConfigError: the probability is not one.
        UnslimmableError: the module has no residual blocks.
    """
    if check_number("block_survival", block_survival, high=1.0) == 1:
        yield module
        return
    rng = random.Random(seed)
    blocks = residual_blocks(module)
    probabilities = survival_probabilities(len(blocks), block_survival)
    skipped = [b for b, keep in zip(blocks, probabilities, strict=True) if rng.random() >= keep]
    with Overrides() as overrides:
        for block in skipped:
            # On the instance: modules call self.forward, which finds it before the class's.
            overrides.set(block.__dict__, "forward", _shortcut_only(block))
        yield module


def _shortcut_only(block: nn.Module) -> Callable[[Tensor], Tensor]:
    shortcut = next(getattr(block, name) for name in _SHORTCUTS if hasattr(block, name))

    def forward(x: Tensor) -> Tensor:
        return F.relu(x if shortcut is None else shortcut(x))

    return forward
