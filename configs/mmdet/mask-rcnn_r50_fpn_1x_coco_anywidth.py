"""Mask R-CNN R50-FPN, 1x, for any width down to 0.5: one pass a step, full or narrow."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

_base_ = "./mask-rcnn_r50_fpn_1x_coco_gradaug.py"

# In the second half of the 87960 iterations of 8 GPUs, every other step is narrow.
custom_hooks = [
    dict(
        type="GradAugHook",
        passes="alternating",
        widths=[0.875, 0.75, 0.5],
        full_share=0.5,
        start=43980,
    ),
    dict(type="ExactResumeHook"),
]
