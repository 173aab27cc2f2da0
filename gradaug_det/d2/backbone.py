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


def detector_backbone(detector: nn.Module) -> nn.Module:
    """Returns the part of a detector whose channels are sampled.

    Raises:
        UnslimmableError: the detector has no ``backbone``, or it cannot be slimmed.
    """
    return _checked(slimmable_part(core.detector_backbone(detector)))
