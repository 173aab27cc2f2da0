"""The mini configs of the two frameworks are one experiment.

The same weights, renamed, give the same losses and the same detections; new layers start alike; the
optimizer, its schedule and its clipping are the same numbers.
"""

import copy
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.utils.events import EventStorage
from mmdet.registry import DATASETS, MODELS
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, PARAM_SCHEDULERS, init_default_scope

from gradaug_det.d2.config import gradaug_options
from gradaug_det.d2.data import register_coco
from gradaug_det.d2.train import load_config as load_d2
from gradaug_det.datasets import build_mini_coco
from gradaug_det.finetuning.frameworks import FRAMEWORKS
from gradaug_det.mmdet.train import load_config as load_mm
from gradaug_det.zoo.convert import convert
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


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = build_mini_coco(tmp_path_factory.mktemp("cross") / "mini_coco", train=4, val=2)
    for split in ("train", "val"):
        annotations = folder / "annotations" / f"instances_{split}.json"
        register_coco(f"cross_{split}", annotations, folder / split)
    return folder


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


@pytest.fixture(scope="module")
def pair():
    return detectors()


def d2_images(cfg, split, training):
    cfg = cfg.clone()
    cfg.INPUT.RANDOM_FLIP = "none"
    mapper = DatasetMapper(cfg, is_train=training)
    records = sorted(DatasetCatalog.get(f"cross_{split}"), key=lambda r: r["image_id"])
    return [mapper(record) for record in records if record["annotations"] or not training]


def mm_images(config, folder, split):
    loader = config[f"{split}_dataloader"].dataset.copy()
    loader.data_root = f"{folder}/"
    loader.pipeline = [step for step in loader.pipeline if step.type != "RandomFlip"]
    dataset = DATASETS.build(loader)
    return pseudo_collate([dataset[index] for index in range(len(dataset))])


def test_every_loss_is_the_same(pair, data):
    (cfg, ours), (config, theirs) = pair
    batch = d2_images(cfg, "train", training=True)
    ours.train(), theirs.train()
    with EventStorage(0), torch.no_grad():
        first = ours(batch)
        images = theirs.data_preprocessor(mm_images(config, data, "train"), training=True)
        assert len(batch) == len(images["inputs"]) == 4
        second = theirs(**images, mode="loss")
        theirs_inputs, ours_inputs = images["inputs"], ours.preprocess_image(batch).tensor
    assert torch.equal(theirs_inputs, ours_inputs.flip(1))  # RGB and BGR
    second = {k: float(sum(v) if isinstance(v, list) else v) for k, v in second.items()}
    for name, other in (
        ("loss_cls", "loss_cls"),
        ("loss_box_reg", "loss_bbox"),
        ("loss_mask", "loss_mask"),
    ):
        assert float(first[name]) == pytest.approx(second[other], rel=1e-3), name
    # Detectron2 divides by the samples asked for, MMDetection by those there were. With the
    # 64 of the config there are always enough; here both losses have the same factor.
    factors = [
        float(first["loss_rpn_cls"]) / second["loss_rpn_cls"],
        float(first["loss_rpn_loc"]) / second["loss_rpn_bbox"],
    ]
    assert factors[0] == pytest.approx(factors[1], rel=2e-2)


def test_detections_are_the_same(pair, data):
    (cfg, ours), (config, theirs) = pair
    ours.eval(), theirs.eval()
    with torch.no_grad():
        first = [r["instances"] for r in ours(d2_images(cfg, "val", training=False))]
        second = [r.pred_instances for r in theirs.test_step(mm_images(config, data, "val"))]
    for one, other in zip(first, second, strict=True):
        assert len(one) == len(other) == cfg.TEST.DETECTIONS_PER_IMAGE
        assert torch.allclose(one.scores, other.scores, atol=1e-5)
        assert (one.pred_classes == other.labels).float().mean() > 0.95  # ties may swap
        same = one.pred_classes == other.labels
        near = (one.pred_boxes.tensor - other.bboxes).abs().amax(1)[same]
        assert (near < 1e-2).float().mean() > 0.95
        agree = (one.pred_masks == other.masks).float().mean((1, 2))[same]
        assert agree.median() > 0.999


def test_new_layers_start_alike():
    """The same spread of initial weights."""
    cfg, config = configs()
    config.model.backbone.init_cfg = None
    init_default_scope("mmdet")
    theirs = MODELS.build(config.model)
    theirs.init_weights()
    wanted = in_detectron2(theirs.state_dict())
    compared = 0
    for name, tensor in build_model(cfg).state_dict().items():
        if name.startswith(("backbone.bottom_up", "pixel")):
            continue
        assert tensor.shape == wanted[name].shape
        if name.endswith("bias"):
            assert not tensor.any() and not wanted[name].any()
        else:
            assert tensor.std().item() == pytest.approx(wanted[name].std().item(), rel=0.1), name
            # Uniform and normal weights of one spread have other extremes.
            assert tensor.abs().max().item() == pytest.approx(
                wanted[name].abs().max().item(), rel=0.35
            ), name
        compared += 1
    assert compared == 2 * (8 + 3 + 3 + 4)


def optim_wrapper(config, module):
    return build_optim_wrapper(module, copy.deepcopy(config.optim_wrapper.to_dict()))


def test_optimizer_and_clipping_are_the_same(pair):
    (cfg, ours), (config, theirs) = pair
    optimizer = build_optimizer(cfg, ours)
    wrapper = optim_wrapper(config, theirs)
    groups = [o.param_groups for o in (optimizer, wrapper.optimizer)]
    settings = ("lr", "momentum", "weight_decay", "nesterov", "dampening")
    kinds = [{tuple(group[key] for key in settings) for group in side} for side in groups]
    assert kinds[0] == kinds[1]
    trained = [
        sum(p.numel() for g in side for p in g["params"] if p.requires_grad) for side in groups
    ]
    assert trained[0] == trained[1] > 10_000_000

    clip = cfg.SOLVER.CLIP_GRADIENTS
    assert clip.ENABLED and clip.CLIP_TYPE == config.optim_wrapper.clip_grad.type == "value"
    assert config.optim_wrapper.clip_grad.clip_value == clip.CLIP_VALUE


def test_the_learning_rate_is_the_same_in_every_step():
    cfg, config = configs()
    module = torch.nn.Linear(1, 1)  # schedules do not look at the model
    module(torch.ones(1, 1)).sum().backward()
    ours, theirs = build_optimizer(cfg, module), optim_wrapper(config, module).optimizer
    schedules = [
        build_lr_scheduler(cfg, ours),
        *(PARAM_SCHEDULERS.build(dict(s, optimizer=theirs)) for s in config.param_scheduler),
    ]
    assert config.train_cfg.max_iters == cfg.SOLVER.MAX_ITER
    for iteration in range(cfg.SOLVER.MAX_ITER):
        lr, other = (optimizer.param_groups[0]["lr"] for optimizer in (ours, theirs))
        assert lr == pytest.approx(other, rel=1e-6), iteration
        for step in (ours, theirs, *schedules):
            step.step()


def test_batches_and_gradaug_settings_are_the_same():
    cfg, config = configs("gradaug")
    assert config.train_dataloader.batch_size == cfg.SOLVER.IMS_PER_BATCH
    assert config.default_hooks.checkpoint.interval == cfg.SOLVER.CHECKPOINT_PERIOD
    assert config.model.backbone.init_cfg.checkpoint == cfg.MODEL.WEIGHTS
    ours, theirs = gradaug_options(cfg), HOOKS.build(config.custom_hooks[0]).options
    assert tuple(ours.scales) == theirs.scales
    assert replace(ours, scales=theirs.scales) == theirs
