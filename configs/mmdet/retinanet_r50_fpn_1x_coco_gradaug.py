"""RetinaNet R50-FPN, 1x, with GradAug."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

_base_ = "./retinanet_r50_fpn_1x_coco_plain.py"

custom_imports = dict(imports=["gradaug_det.mmdet"], allow_failed_imports=False)
model = dict(backbone=dict(type="SlimmableResNet"))
custom_hooks = [dict(type="GradAugHook"), dict(type="ExactResumeHook")]
