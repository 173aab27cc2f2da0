"""Stochastic depth for torchvision's ResNets, one of the methods that GradAug is compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from gradaug_det.core.depth import residual_blocks, survival_probabilities


def add_stochastic_depth(model: nn.Module, last_survival: float) -> None:
    """In training, each image skips residual branches at random; names and weights stay.

    Args:
        model: a torchvision ResNet.
        last_survival: probability of keeping the last branch, in [0, 1]; the first is always
            kept, those between linearly. 1 leaves the model as it is.

    Source: Huang et al., Deep Networks with Stochastic Depth, 2016, equation 4. Kept branches are
        scaled up in training in place of down at test time.
    """
    if last_survival == 1:
        return
    blocks = residual_blocks(model)
    keeps = survival_probabilities(len(blocks), last_survival)
    for block, keep in zip(blocks, keeps, strict=True):
        # The branch ends with the last norm: bn2 of a basic block, bn3 of a bottleneck.
        norm = block.bn3 if hasattr(block, "bn3") else block.bn2
        norm.register_forward_hook(_dropper(1 - keep))


def _dropper(probability: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def drop(norm: nn.Module, _args: Any, branch: Tensor) -> Tensor:
        return stochastic_depth(branch, probability, "row", norm.training)

    return drop
