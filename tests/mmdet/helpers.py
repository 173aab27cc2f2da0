"""Tiny real detectors, data and runners: MMDetection's own models, small enough for a CPU."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

import copy
import functools

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmdet.utils import register_all_modules
from mmengine.hooks import Hook
from mmengine.hub import get_config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, HOOKS
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import nn
from torch.utils.data import Dataset

import gradaug_det.mmdet  # noqa: F401 registers

register_all_modules(init_default_scope=True)

KINDS = ("mask_rcnn", "faster_rcnn", "cascade_mask_rcnn", "retinanet", "fcos", "atss")
BASES = {
    "mask_rcnn": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "faster_rcnn": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "cascade_mask_rcnn": "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
    "retinanet": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "fcos": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "atss": "atss/atss_r50_fpn_1x_coco.py",
    "detr": "detr/detr_r50_8xb2-150e_coco.py",
}
NUM_CLASSES = 3
FPN_CHANNELS = 16
HOOK = dict(num_subnets=2, min_width=0.7, flip_prob=0.5, seed=5, supervision="soft")
ALTERNATING = dict(passes="alternating", widths=[0.5], full_share=0.5, seed=1)
"""Narrow, full, narrow, full."""
PLAIN_SGD = dict(optimizer=dict(type="SGD", lr=1.0))


@functools.cache
def _base(kind):
    return get_config(f"mmdet::{BASES[kind]}").model


def tiny_model_cfg(kind="mask_rcnn", backbone="SlimmableResNet", norm_eval=True):
    """MMDetection's own model config of that kind, with everything made small."""
    cfg = copy.deepcopy(_base(kind))
    cfg.backbone.update(
        type=backbone,
        depth=18,
        frozen_stages=-1,
        init_cfg=None,
        norm_eval=norm_eval,
        style="pytorch",
        norm_cfg=dict(type="BN", requires_grad=True),
    )
    cfg.backbone.pop("dcn", None)
    cfg.neck.update(
        in_channels=[64, 128, 256, 512][-len(cfg.neck.in_channels) :], out_channels=FPN_CHANNELS
    )
    if "rpn_head" in cfg:
        cfg.rpn_head.update(in_channels=FPN_CHANNELS, feat_channels=FPN_CHANNELS)
        cfg.rpn_head.anchor_generator.scales = [4]
        cfg.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=40)
        cfg.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
        for name in ("bbox_roi_extractor", "mask_roi_extractor"):
            if name in cfg.roi_head:
                cfg.roi_head[name].update(out_channels=FPN_CHANNELS)
                cfg.roi_head[name].roi_layer.output_size = 5 if "bbox" in name else 7
        heads = cfg.roi_head.bbox_head
        for head in heads if isinstance(heads, list) else [heads]:
            head.update(
                in_channels=FPN_CHANNELS, fc_out_channels=32, roi_feat_size=5, num_classes=3
            )
        if "mask_head" in cfg.roi_head:
            cfg.roi_head.mask_head.update(
                in_channels=FPN_CHANNELS, conv_out_channels=16, num_convs=1, num_classes=3
            )
        rcnn = cfg.train_cfg.rcnn
        for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
            stage.sampler.num = 32
            if "mask_size" in stage:
                stage.mask_size = 14
    else:
        cfg.bbox_head.update(
            num_classes=NUM_CLASSES, in_channels=FPN_CHANNELS, feat_channels=16, stacked_convs=1
        )
        if kind in ("fcos", "atss"):
            cfg.bbox_head.feat_channels = 64  # for the 32 groups of their classes' own norms
        if kind == "atss":
            cfg.bbox_head.anchor_generator.octave_base_scale = 4
        if kind == "retinanet":
            cfg.bbox_head.anchor_generator.octave_base_scale = 2
    return cfg


def tiny_model(kind="mask_rcnn", seed=0, double=False, cfg=None, **kwargs):
    """A detector in training mode with statistics that fit its random weights."""
    torch.manual_seed(seed)
    model = MODELS.build(cfg or tiny_model_cfg(kind, **kwargs))
    model.init_weights()
    model = revert_sync_batchnorm(model)
    images = model.data_preprocessor(collated(tiny_items()), False)["inputs"]
    calibrate_backbone(model.backbone, images)
    model.train()
    return model.double() if double else model


@torch.no_grad()
def calibrate_backbone(backbone, images):
    """Running statistics that fit the random weights, as a pretrained backbone's fit its own."""

    def measure(layer, args):
        layer.running_mean.copy_(args[0].mean(dim=(0, 2, 3)))
        layer.running_var.copy_(args[0].var(dim=(0, 2, 3)) + 1e-3)

    backbone.eval()
    handles = [
        layer.register_forward_pre_hook(measure)
        for layer in backbone.modules()
        if isinstance(layer, nn.BatchNorm2d)
    ]
    backbone(images)
    for handle in handles:
        handle.remove()


def tiny_item(seed, size=(96, 128), masks="polygon"):
    """One image with three boxes, as PackDetInputs leaves it."""
    height, width = size
    rng = np.random.default_rng(seed)
    corner = rng.uniform([0, 0], [width / 2, height / 2], (3, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(12, height / 2, (3, 2))], axis=1)
    sample = DetDataSample(
        metainfo=dict(
            img_id=seed,
            img_shape=size,
            ori_shape=size,
            scale_factor=(1.0, 1.0),
            flip=False,
            flip_direction=None,
        )
    )
    gt = InstanceData()
    gt.bboxes = torch.as_tensor(boxes, dtype=torch.float32)
    gt.labels = torch.arange(3) % NUM_CLASSES
    if masks == "polygon":
        polygons = [[np.array([a, b, c, b, c, d, a, d])] for a, b, c, d in boxes.tolist()]
        gt.masks = PolygonMasks(polygons, height, width)
    elif masks == "bitmap":
        bitmaps = np.zeros((3, height, width), dtype=np.uint8)
        for mask, (a, b, c, d) in zip(bitmaps, boxes.astype(int), strict=True):
            mask[b:d, a:c] = 1
        gt.masks = BitmapMasks(bitmaps, height, width)
    sample.gt_instances = gt
    sample.ignored_instances = InstanceData(
        bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long)
    )
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    return dict(inputs=image, data_samples=sample)


def tiny_items(seed=0, masks="polygon", sizes=((96, 128), (80, 112))):
    return [tiny_item(10 * seed + i, size, masks) for i, size in enumerate(sizes)]


def collated(items):
    """What MMEngine's pseudo_collate makes of items."""
    items = copy.deepcopy(items)
    return {key: [item[key] for item in items] for key in ("inputs", "data_samples")}


@DATASETS.register_module(force=True)
class TinyDataset(Dataset):
    """A few deterministic images of two sizes."""

    def __init__(self, length=4, masks="bitmap"):
        self.length, self.masks = length, masks
        self.metainfo = dict(classes=("a", "b", "c"), palette=None)

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        return tiny_item(index, ((96, 128), (80, 112))[index % 2], self.masks)


@HOOKS.register_module(force=True)
class ReseedHook(Hook):
    """The full pass's own random numbers depend on the iteration alone."""

    priority = "HIGHEST"

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        torch.manual_seed(1000 + runner.iter)


def make_runner(model, tmp_path, hook=None, hooks=(), optim=None, loop=None, **kwargs):
    """A real MMEngine runner over the tiny data; two images a step, in order."""
    custom = [dict(type="ReseedHook")]
    if hook is not None:
        custom.append(dict(type="GradAugHook", **hook))
    loop = loop or dict(by_epoch=True, max_epochs=1)
    by_epoch = "type" not in loop
    settings = dict(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            # MMEngine waits for seconds when an iteration-based loop starts the data again.
            sampler=dict(type="DefaultSampler" if by_epoch else "InfiniteSampler", shuffle=False),
            dataset=dict(type="TinyDataset"),
            collate_fn=dict(type="pseudo_collate"),
        ),
        train_cfg=loop,
        optim_wrapper=dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.01, momentum=0.9))
        | (optim or {}),
        custom_hooks=custom + list(hooks),
        default_hooks=dict(checkpoint=None, logger=dict(type="LoggerHook", interval=1), timer=None),
        log_processor=dict(by_epoch=by_epoch),
        default_scope="mmdet",
        randomness=dict(seed=1),
        experiment_name=f"tiny_{np.random.default_rng().integers(2**62)}",
        log_level="ERROR",
    )
    settings.update(kwargs)
    return Runner(**settings)


def parameters(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(one, two):
    """Bitwise equality of two dictionaries of tensors."""
    assert one.keys() == two.keys()
    different = [name for name in one if not torch.equal(one[name], two[name])]
    assert not different, different[:5]


def train(model, tmp_path, hook=None, **kwargs):
    runner = make_runner(model, tmp_path, hook, **kwargs)
    runner.train()
    return runner
