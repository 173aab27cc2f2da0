"""Mask R-CNN R50-FPN, 1x, with GradAug: what differs from the plain config is below."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

_base_ = "./mask-rcnn_r50_fpn_1x_coco_plain.py"

custom_imports = dict(imports=["gradaug_det.mmdet"], allow_failed_imports=False)
model = dict(backbone=dict(type="SlimmableResNet"))
# Every setting with its default; see gradaug_det.core.options.GradAugOptions for what each means.
custom_hooks = [
    dict(
        type="GradAugHook",
        num_subnets=3,  # n: sub-networks a step
        min_width=0.9,  # alpha: the smallest width multiplier
        scales=(1.0, 0.857, 0.714, 0.571),  # the ratios of 224, 192, 160 and 128 pixels
        flip_prob=0.0,  # probability that a sub-network sees the batch mirrored
        block_survival=1.0,  # probability of keeping the last residual branch; 1: width alone
        divisor=1,  # sub-networks' channels are multiples of it; 16 is faster
        supervision="labels",  # labels: ground truth; soft: outputs of the full network; both
        soft_weight=1.0,
        labels_weight=1.0,
        soft_warmup=0,
        subnet_norm="auto",  # BatchNorm statistics in sub-networks: as in the full network
        seed=0,
        log_period=20,  # iterations between log lines that name widths and scales
        channels_last=False,  # True: convolutions keep (N, H, W, C) in memory, faster on CPUs
        nonfinite="raise",  # a NaN or infinity stops and leaves a file to replay; or "skip"
        not_in_pixels=(),  # further fields of the batch that sub-networks get as they are
    ),
    dict(type="ExactResumeHook"),  # resumed is uninterrupted; SIGTERM saves
]
