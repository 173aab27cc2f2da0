"""GradAug for Detectron2. Importing this registers the slimmable backbones in Detectron2."""

from gradaug_det.d2.backbone import (
    build_slimmable_resnet_backbone,
    build_slimmable_resnet_fpn_backbone,
    build_slimmable_retinanet_resnet_fpn_backbone,
)
from gradaug_det.d2.config import add_gradaug_config, gradaug_options
from gradaug_det.d2.hook import GradAugHook

__all__ = [
    "GradAugHook",
    "add_gradaug_config",
    "build_slimmable_resnet_backbone",
    "build_slimmable_resnet_fpn_backbone",
    "build_slimmable_retinanet_resnet_fpn_backbone",
    "gradaug_options",
]
