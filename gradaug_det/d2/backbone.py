"""Detectron2's own ResNets, registered under names that promise they can be slimmed."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone import FPN, ResNet, build_resnet_backbone
from detectron2.modeling.backbone.fpn import (
    build_resnet_fpn_backbone,
    build_retinanet_resnet_fpn_backbone,
)
from torch import nn

from gradaug_det.core.slimming import slim_plan, uncompiled
from gradaug_det.errors import UnslimmableError


def slimmable_part(backbone: nn.Module) -> nn.Module:
    """The part of a backbone whose channels are sampled: the bottom-up network under an FPN."""
    backbone = uncompiled(backbone)
    return uncompiled(backbone.bottom_up) if isinstance(backbone, FPN) else backbone


def _checked(backbone: Backbone) -> Backbone:
    # Deriving the plan now turns a layer that cannot be slimmed into an error before training.
    slim_plan(slimmable_part(backbone))
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


def detector_backbone(detector: nn.Module) -> nn.Module:
    """The slimmable part of a detector.

    Raises:
        UnslimmableError: the detector has no ``backbone``, or it cannot be slimmed.
    """
    backbone = getattr(detector, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise UnslimmableError(
            f"{type(detector).__name__} has no attribute 'backbone', which GradAug slims"
        )
    part = slimmable_part(backbone)
    slim_plan(part)
    return part
