"""Mask R-CNN R50-FPN, 1x, with GradAug: what differs from the plain config is below."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

_base_ = "./mask-rcnn_r50_fpn_1x_coco_plain.py"

custom_imports = dict(imports=["gradaug_det.mmdet"], allow_failed_imports=False)
model = dict(backbone=dict(type="SlimmableResNet"))
# Every setting at its default; see docs/configuration.md. The second hook: exact resume.
custom_hooks = [dict(type="GradAugHook"), dict(type="ExactResumeHook")]
