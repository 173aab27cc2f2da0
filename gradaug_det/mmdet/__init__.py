"""GradAug for MMDetection. Importing this registers slimmable backbones, hook and ``gradaug://``.

In a config: ``custom_imports = dict(imports=["gradaug_det.mmdet"])``, then
``custom_hooks = [dict(type="GradAugHook", num_subnets=2)]``.
"""

from gradaug_det.mmdet.versions import check_stack

check_stack()

from gradaug_det.mmdet.backbone import (  # noqa: E402
    SlimmableResNet,
    SlimmableResNetV1d,
    SlimmableResNeXt,
    slimmed_part,
)
from gradaug_det.mmdet.hook import GradAugHook  # noqa: E402
from gradaug_det.mmdet.mask_head import SmallInitMaskHead  # noqa: E402
from gradaug_det.mmdet.preprocessing import (  # noqa: E402
    check_preprocessing,
    fix_preprocessing,
)
from gradaug_det.mmdet.resume import ExactResumeHook  # noqa: E402

__all__ = [
    "ExactResumeHook",
    "GradAugHook",
    "SlimmableResNeXt",
    "SlimmableResNet",
    "SlimmableResNetV1d",
    "SmallInitMaskHead",
    "check_preprocessing",
    "fix_preprocessing",
    "slimmed_part",
]
