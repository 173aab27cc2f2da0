"""What the detectors of both frameworks have in common as Algorithm 1's network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.regularizer import Losses
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.core.slimming import slim_plan


class SlimmableDetector:
    """A detector in training, up to its passes (see
    :class:`gradaug_det.core.regularizer.Trainable`).

    Args:
        detector: the framework's model, not wrapped for distribution.
        backbone: the part of it that is slimmed.
        options: the settings.
        soft_targets: what soft targets are made of and compared by, for a detector; asked for only
            if the options need it.

    Raises:
        UnslimmableError: the backbone cannot be slimmed.
        ConfigError: the supervision or the norm policy does not fit the detector.
    """

    def __init__(
        self,
        detector: nn.Module,
        backbone: nn.Module,
        options: GradAugOptions,
        soft_targets: Callable[[nn.Module], Any],
    ) -> None:
        self.module, self.backbone, self.options = detector, backbone, options
        self.subnet_norm = options.subnet_norm
        slim_plan(backbone).check_norm(options.subnet_norm)
        if options.channels_last:
            detector.to(memory_format=torch.channels_last)
        self.targets = soft_targets(detector) if options.uses_soft else None

    def weighted(self, labels: Losses, soft: Losses, sub: SubNetwork) -> Losses:
        """A sub-network's losses against labels and soft targets as ``labels_*`` and ``soft_*``."""
        options, soft_weight = self.options, self.options.soft_weight_at(sub.iteration)
        return {
            **{
                f"labels_{k.replace('loss_', '')}": options.labels_weight * v
                for k, v in labels.items()
            },
            **{f"soft_{k}": soft_weight * v for k, v in soft.items()},
        }
