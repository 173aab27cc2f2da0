"""The demo's Mask R-CNN with GradAug, in as many steps as take plain training's time."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

_base_ = "./demo_mask-rcnn_r18_fpn_plain.py"

model = dict(backbone=dict(type="SlimmableResNet"))
custom_hooks = [dict(type="GradAugHook", num_subnets=1)]
train_cfg = dict(max_iters=750)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=51),
    dict(type="MultiStepLR", by_epoch=False, begin=0, milestones=[562], gamma=0.1),
]
