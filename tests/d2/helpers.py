"""Tiny real detectors and batches: Detectron2's own models, small enough for a CPU."""

import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.engine import SimpleTrainer
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from gradaug_det.d2 import add_gradaug_config
from tests.amp import cpu_scaler

KINDS = ("mask_rcnn", "faster_rcnn", "cascade_mask_rcnn", "retinanet")
NUM_CLASSES = 3


def tiny_cfg(kind="mask_rcnn", norm="FrozenBN"):
    cfg = get_cfg()
    add_gradaug_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.MASK_ON = "mask" in kind
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 5
    cfg.MODEL.ROI_MASK_HEAD.NAME = "MaskRCNNConvUpsampleHead"
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 7
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = 100
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 64
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 50
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    if kind == "retinanet":
        cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
        cfg.MODEL.RETINANET.NUM_CLASSES = NUM_CLASSES
        cfg.MODEL.RETINANET.NUM_CONVS = 1
        cfg.MODEL.BACKBONE.NAME = "build_slimmable_retinanet_resnet_fpn_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
        cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [
            [s, s * 2 ** (1 / 3), s * 2 ** (2 / 3)] for s in (16, 32, 64, 128, 256)
        ]
    else:
        cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
        cfg.MODEL.BACKBONE.NAME = "build_slimmable_resnet_fpn_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64], [128], [256]]
        cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[0.5, 1.0, 2.0]]
        cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
        cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
        if kind.startswith("cascade"):
            cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
            cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
            cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 32
    return cfg


def tiny_model(kind="mask_rcnn", norm="FrozenBN", seed=0, double=False, cfg=None):
    torch.manual_seed(seed)
    model = build_model(cfg or tiny_cfg(kind, norm)).train()
    calibrate(model)
    return double_model(model) if double else model


@torch.no_grad()
def calibrate(model):
    """Frozen statistics that fit the random weights, as a pretrained backbone's fit its own."""

    def measure(layer, args):
        layer.running_mean.copy_(args[0].mean(dim=(0, 2, 3)))
        layer.running_var.copy_(args[0].var(dim=(0, 2, 3)) + 1e-3)

    handles = [
        layer.register_forward_pre_hook(measure)
        for layer in model.modules()
        if isinstance(layer, FrozenBatchNorm2d)
    ]
    model.backbone(model.preprocess_image(tiny_batch()).tensor)
    for handle in handles:
        handle.remove()


def double_model(model):
    """The model in float64, so that two ways to the same gradient can be told apart.

    Detectron2 keeps boxes in float32 and its NMS wants scores of the same type.
    """
    model.double()
    if hasattr(model, "proposal_generator"):
        model.proposal_generator.rpn_head.register_forward_hook(
            lambda _m, _i, out: ([logits.float() for logits in out[0]], out[1])
        )
    return model


def instances(boxes, size, classes=None, masks="polygon"):
    """Instances with rectangular masks of the given XYXY boxes."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    new = Instances(size)
    new.gt_boxes = Boxes(boxes)
    new.gt_classes = torch.as_tensor(
        classes if classes is not None else [i % NUM_CLASSES for i in range(len(boxes))]
    ).long()
    if masks == "polygon":
        new.gt_masks = PolygonMasks(
            [
                [np.array([x0, y0, x1, y0, x1, y1, x0, y1], dtype=np.float64)]
                for x0, y0, x1, y1 in boxes.tolist()
            ]
        )
    elif masks == "bitmask":
        full = torch.zeros(len(boxes), *size, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(full, boxes.long().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        new.gt_masks = BitMasks(full)
    return new


def tiny_batch(seed=0, masks="polygon", sizes=((96, 128), (80, 112))):
    """Two images of different sizes with two or three boxes each."""
    rng = np.random.default_rng(seed)
    batch = []
    for height, width in sizes:
        corner = rng.uniform([0, 0], [width / 2, height / 2], (3, 2))
        extent = rng.uniform(12, min(height, width) / 2, (3, 2))
        boxes = np.concatenate([corner, corner + extent], axis=1)
        image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
        batch.append(
            {
                "image": image,
                "height": height,
                "width": width,
                "instances": instances(boxes, (height, width), masks=masks),
            }
        )
    return batch


def batches(masks="polygon"):
    """An endless, deterministic data loader."""
    seed = 0
    while True:
        yield tiny_batch(seed, masks)
        seed += 1


class ScaledTrainer(SimpleTrainer):
    """AMPTrainer's step with torch's own CPU GradScaler."""

    def __init__(self, *args):
        super().__init__(*args)
        self.grad_scaler = cpu_scaler(init_scale=1024.0)

    def run_step(self):
        losses = self.model(next(self._data_loader_iter))
        self.optimizer.zero_grad()
        self.grad_scaler.scale(sum(losses.values())).backward()
        self._write_metrics(losses, 0.0)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()


class LoadedTrainer(SimpleTrainer):
    """A SimpleTrainer that Detectron2's own hooks can be registered with; nothing overridden."""


def make_trainer(model, hook=None, lr=0.01, data=None, momentum=0.9, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    trainer = LoadedTrainer(model, data or batches(), optimizer)
    trainer.register_hooks([hook])
    return trainer


def train(model, hook=None, steps=2, seed=1, **kwargs):
    """Trains for some steps; returns the trainer (its storage holds what was logged)."""
    torch.manual_seed(seed)
    trainer = make_trainer(model, hook, **kwargs)
    trainer.train(0, steps)
    return trainer


def storage():
    return EventStorage(0)


class RegNetLike(torch.nn.Module):
    """A backbone that concatenates channels: it cannot be slimmed."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.mix = _Mix()

    def forward(self, x):
        return {"res2": self.mix(self.conv(x))}


class _Mix(torch.nn.Module):
    def forward(self, x):
        return torch.cat([x, x], dim=1)
