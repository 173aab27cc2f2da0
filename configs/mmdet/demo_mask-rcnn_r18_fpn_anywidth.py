"""The demo's Mask R-CNN for any width down to 0.5."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

_base_ = "./demo_mask-rcnn_r18_fpn_plain.py"

model = dict(
    backbone=dict(
        type="SlimmableResNet", init_cfg=dict(checkpoint="gradaug://mini-resnet18-anywidth")
    )
)
custom_hooks = [dict(type="GradAugHook", passes="alternating", start=650, full_share=0.5)]
