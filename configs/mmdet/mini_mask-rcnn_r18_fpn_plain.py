"""Mask R-CNN with a ResNet-18 and small heads on mini-COCO (10 kinds of garments, 192x256 pixels).

The same experiment as configs/detectron2/mini-Base.yaml: sizes, schedule, initial weights of new
layers (Caffe2's Xavier), matching of proposals. A training takes minutes on 2 CPU cores. Build the
data first: ``gradaug-det build-mini-coco --out data/mini_coco``; MMDET_DATASETS names another
folder than ``data``.
"""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

_base_ = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
# For gradaug:// and SmallInitMaskHead.
custom_imports = dict(imports=["gradaug_det.mmdet"], allow_failed_imports=False)

model = dict(
    backbone=dict(
        depth=18,
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=False),
        zero_init_residual=False,
        init_cfg=dict(type="Pretrained", checkpoint="gradaug://mini-resnet18-gradaug"),
    ),
    neck=dict(
        in_channels=[64, 128, 256, 512],
        out_channels=64,
        init_cfg=dict(type="Caffe2Xavier", layer="Conv2d"),
    ),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(
            type="ConvFCBBoxHead",
            num_shared_fcs=1,
            in_channels=64,
            fc_out_channels=256,
            num_classes=10,
            init_cfg=[
                dict(type="Caffe2Xavier", override=dict(name="shared_fcs")),
                dict(type="Normal", std=0.01, override=dict(name="fc_cls")),
                dict(type="Normal", std=0.001, override=dict(name="fc_reg")),
            ],
        ),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(
            type="SmallInitMaskHead",
            num_convs=2,
            in_channels=64,
            conv_out_channels=64,
            num_classes=10,
        ),
    ),
    train_cfg=dict(
        rpn=dict(assigner=dict(min_pos_iou=0.0), sampler=dict(num=64)),
        rpn_proposal=dict(nms_pre=300, max_per_img=150),
        rcnn=dict(assigner=dict(match_low_quality=False), sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100)),
)

# ---- data -------------------------------------------------------------------------------------
# The names are Fashion-MNIST's, in the order of the annotation files' categories.
metainfo = dict(
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
)
data_root = "{{$MMDET_DATASETS:data}}/mini_coco/"
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(256, 192), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(256, 192), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    sampler=dict(type="InfiniteSampler"),
    batch_sampler=None,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file="annotations/instances_train.json",
        data_prefix=dict(img="train/"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file="annotations/instances_val.json",
        data_prefix=dict(img="val/"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val.json")
test_evaluator = val_evaluator

# ---- schedule ---------------------------------------------------------------------------------
# Validation is after the last iteration, whatever max_iters is.
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=450, val_interval=1_000_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=51),  # 50 steps
    dict(type="MultiStepLR", by_epoch=False, begin=0, milestones=[350], gamma=0.1),
]
# Each element of the gradient, of all passes together: most are cut, so that layers with small and
# large gradients move alike, which short schedules from new heads need.
optim_wrapper = dict(optimizer=dict(lr=0.05), clip_grad=dict(type="value", clip_value=0.001))
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=100, max_keep_ckpts=2),
)
log_processor = dict(by_epoch=False, window_size=20)
randomness = dict(seed=1)
