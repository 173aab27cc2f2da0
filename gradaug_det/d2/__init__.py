"""GradAug for Detectron2. Importing this registers the slimmable backbones and ``gradaug://``."""

from gradaug_det.d2.backbone import (
    build_slimmable_resnet_backbone,
    build_slimmable_resnet_fpn_backbone,
    build_slimmable_retinanet_resnet_fpn_backbone,
    slimmed_part,
)
from gradaug_det.d2.config import add_gradaug_config, gradaug_options
from gradaug_det.d2.hook import GradAugHook
from gradaug_det.d2.preprocessing import check_preprocessing, fix_preprocessing

__all__ = [
    "GradAugHook",
    "add_gradaug_config",
    "build_slimmable_resnet_backbone",
    "build_slimmable_resnet_fpn_backbone",
    "build_slimmable_retinanet_resnet_fpn_backbone",
    "check_preprocessing",
    "fix_preprocessing",
    "gradaug_options",
    "slimmed_part",
]
