"""MMDetection's own ResNets, registered under names that promise they can be slimmed."""

from __future__ import annotations

from typing import Any

from mmcv.ops import SyncBatchNorm
from mmdet.models.backbones import ResNet, ResNetV1d, ResNeXt
from mmdet.registry import MODELS
from torch import nn

from gradaug_det.core import slimming as core
from gradaug_det.errors import UnslimmableError


class _Slimmable:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Deriving the plan now turns a layer that cannot be slimmed into an error before training.
        core.slim_plan(self)


@MODELS.register_module()
class SlimmableResNet(_Slimmable, ResNet):
    """MMDetection's ResNet; parameter names, checkpoints and arguments are its own.

    Raises:
        UnslimmableError: names the layer that cannot be slimmed, e.g. a deformable convolution.
    """


@MODELS.register_module()
class SlimmableResNetV1d(_Slimmable, ResNetV1d):
    """MMDetection's ResNetV1d (deep stem, average pooling in shortcuts), slimmable."""


@MODELS.register_module()
class SlimmableResNeXt(_Slimmable, ResNeXt):
    """MMDetection's ResNeXt, slimmable by whole groups."""


def detector_backbone(detector: nn.Module) -> nn.Module:
    """Returns the part of a detector whose channels are sampled.

    Raises:
        UnslimmableError: the detector has no ``backbone``, or it cannot be slimmed.
    """
    backbone = core.detector_backbone(detector)
    for name, layer in backbone.named_modules():
        if isinstance(layer, SyncBatchNorm):
            # It would write the sub-networks' statistics into the full network's.
            raise UnslimmableError(
                f"cannot slim layer '{name}': MMCV's SyncBatchNorm (MMSyncBN) is not one of "
                "PyTorch's; use norm_cfg=dict(type='SyncBN')"
            )
    core.slim_plan(backbone)
    return backbone
