"""Of ``make demo``: what configs/detectron2/demo_mask_rcnn_R_18_FPN_plain.yaml is there."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

_base_ = "./mini_mask-rcnn_r18_fpn_plain.py"

model = dict(roi_head=dict(bbox_head=dict(num_classes=5), mask_head=dict(num_classes=5)))
metainfo = dict(classes=("Trouser", "Pullover", "Dress", "Sneaker", "Bag"))
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        metainfo=metainfo,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(
                type="RandomChoiceResize",
                scales=[(256, 144), (256, 168), (256, 192)],
                keep_ratio=True,
            ),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackDetInputs"),
        ],
    ),
)
val_dataloader = dict(dataset=dict(metainfo=metainfo))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=1300)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=51),  # 50 steps
    dict(type="MultiStepLR", by_epoch=False, begin=0, milestones=[975], gamma=0.1),
]
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=3e-4, weight_decay=0.05),
)
