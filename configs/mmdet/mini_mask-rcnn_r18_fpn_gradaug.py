"""The mini Mask R-CNN with GradAug."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

_base_ = "./mini_mask-rcnn_r18_fpn_plain.py"

model = dict(backbone=dict(type="SlimmableResNet"))
# As in the Detectron2 config: soft targets of untrained heads teach nothing in a few hundred steps.
custom_hooks = [dict(type="GradAugHook", num_subnets=2, supervision="labels")]
