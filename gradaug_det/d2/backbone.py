"""Detectron2's own ResNets, registered under names that promise they can be slimmed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.fpn import (
    build_resnet_fpn_backbone,
    build_retinanet_resnet_fpn_backbone,
)
from detectron2.modeling.poolers import ROIPooler
from torch import nn

from gradaug_det.core import slimming as core
from gradaug_det.core.slimming import uncompiled


def slimmable_part(backbone: nn.Module) -> nn.Module:
    """Returns what of a backbone is slimmed: the bottom-up network under an FPN."""
    backbone = uncompiled(backbone)
    return uncompiled(backbone.bottom_up) if isinstance(backbone, FPN) else backbone


def _checked(backbone: Backbone) -> Backbone:
    # Deriving the plan now turns a layer that cannot be slimmed into an error before training.
    core.slim_plan(slimmable_part(backbone))
    return backbone


@BACKBONE_REGISTRY.register()
def build_slimmable_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Detectron2's ``build_resnet_backbone`` with a slim plan; names and weights are the same.

    Raises:
        UnslimmableError: e.g. for deformable convolutions.
    """
    return _checked(build_resnet_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_slimmable_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's ``build_resnet_fpn_backbone`` over a slimmable ResNet."""
    return _checked(build_resnet_fpn_backbone(cfg, input_shape))


@BACKBONE_REGISTRY.register()
def build_slimmable_retinanet_resnet_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Detectron2's ``build_retinanet_resnet_fpn_backbone`` over a slimmable ResNet."""
    return _checked(build_retinanet_resnet_fpn_backbone(cfg, input_shape))


def slimmed_part(
    detector: nn.Module, slim: str = "backbone", keep_whole: Sequence[str] = ()
) -> nn.Module:
    """Returns what of a detector is narrow in a sub-network, with its plan.

    Args:
        slim, keep_whole: see :class:`gradaug_det.core.options.GradAugOptions`.

    Raises:
        UnslimmableError: the detector has no ``backbone``, or a layer cannot be slimmed.
        ConfigError: it has no part of a name to be kept whole.
    """
    detector = core.uncompiled(detector)
    backbone = core.detector_backbone(detector)
    if slim == "backbone":
        return _checked(slimmable_part(backbone))
    example = core.ExamplePass(_run_blank, (ROIPooler,), tuple(keep_whole))
    return core.slim_detector(detector, example)


def _run_blank(detector: nn.Module) -> None:
    channels = len(getattr(detector, "pixel_mean", (0, 0, 0)))
    image = torch.zeros(channels, 128, 160, dtype=torch.uint8)  # large enough for seven levels
    detector([{"image": image, "height": 128, "width": 160}])
