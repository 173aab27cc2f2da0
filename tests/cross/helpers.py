"""The mini detector with the same weights in both frameworks."""

import re
from pathlib import Path

import torch
from detectron2.modeling import build_model
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope

from gradaug_det.d2.config import load_config as load_d2
from gradaug_det.mmdet.config import load_config as load_mm
from gradaug_det.zoo.convert import convert
from studies.runner.frameworks import FRAMEWORKS
from tests.mmdet.helpers import calibrate_backbone

ROOT = Path(__file__).parents[2]
# Name of a part outside the backbone, in MMDetection and in Detectron2.
PARTS = (
    (r"^neck\.lateral_convs\.(\d)\.conv", lambda m: f"backbone.fpn_lateral{int(m[1]) + 2}"),
    (r"^neck\.fpn_convs\.(\d)\.conv", lambda m: f"backbone.fpn_output{int(m[1]) + 2}"),
    (r"^rpn_head\.rpn_conv", "proposal_generator.rpn_head.conv"),
    (r"^rpn_head\.rpn_cls", "proposal_generator.rpn_head.objectness_logits"),
    (r"^rpn_head\.rpn_reg", "proposal_generator.rpn_head.anchor_deltas"),
    (r"^roi_head\.bbox_head\.shared_fcs\.0", "roi_heads.box_head.fc1"),
    (r"^roi_head\.bbox_head\.fc_cls", "roi_heads.box_predictor.cls_score"),
    (r"^roi_head\.bbox_head\.fc_reg", "roi_heads.box_predictor.bbox_pred"),
    (
        r"^roi_head\.mask_head\.convs\.(\d)\.conv",
        lambda m: f"roi_heads.mask_head.mask_fcn{int(m[1]) + 1}",
    ),
    (r"^roi_head\.mask_head\.upsample", "roi_heads.mask_head.deconv"),
    (r"^roi_head\.mask_head\.conv_logits", "roi_heads.mask_head.predictor"),
)
EVERYTHING = 100_000  # samples: all anchors and all proposals, so that nothing is left to chance


def configs(method="plain"):
    ours, theirs = (FRAMEWORKS[name].config(method) for name in ("detectron2", "mmdet"))
    return load_d2(ROOT / ours), load_mm(ROOT / theirs)


def in_detectron2(state):
    """A whole MMDetection detector's state under Detectron2's names, for BGR images."""
    backbone = {
        k.removeprefix("backbone."): v for k, v in state.items() if k.startswith("backbone.")
    }
    renamed = {
        f"backbone.bottom_up.{name}": tensor
        for name, tensor in convert(backbone, "mmdet", "detectron2").items()
    }
    for name, tensor in state.items():
        if name.startswith("backbone."):
            continue
        for pattern, replacement in PARTS:
            new, found = re.subn(pattern, replacement, name)
            if found:
                renamed[new] = tensor
                break
        else:
            raise AssertionError(f"{name} has no counterpart")
    return renamed


def detectors():
    """Both detectors with the same weights; every weight is large enough to matter."""
    cfg, config = configs()
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = EVERYTHING
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    config.model.train_cfg.rpn.sampler.num = config.model.train_cfg.rcnn.sampler.num = EVERYTHING
    config.model.test_cfg.rcnn.score_thr = 0.0
    config.model.backbone.init_cfg = None
    init_default_scope("mmdet")
    torch.manual_seed(0)
    theirs = MODELS.build(config.model)
    theirs.init_weights()
    calibrate_backbone(theirs.backbone, torch.randn(2, 3, 96, 128))
    for name, parameter in theirs.named_parameters():
        if re.search(r"rpn_(cls|reg)|fc_(cls|reg)|conv_logits", name):
            torch.nn.init.normal_(parameter, std=0.02)
    ours = build_model(cfg)
    ours.load_state_dict(in_detectron2(theirs.state_dict()), strict=True)
    return (cfg, ours), (config, theirs)
