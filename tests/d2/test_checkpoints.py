"""What training with the hook leaves behind is an ordinary Detectron2 checkpoint."""

import subprocess
import sys

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from gradaug_det.d2 import GradAugHook
from gradaug_det.d2.checkpoint import SafeCheckpointer
from gradaug_det.errors import ZooError
from gradaug_det.zoo.convert import convert_file

from .helpers import tiny_batch, tiny_cfg, tiny_model, train

PLAIN = """
import sys, torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.modeling import build_model

folder = sys.argv[1]
cfg = CfgNode.load_cfg(open(f"{folder}/plain.yaml"))
model = build_model(cfg)
found = DetectionCheckpointer(model).load(f"{folder}/model_final.pth")
inputs = torch.load(f"{folder}/inputs.pth", weights_only=True)
with torch.no_grad():
    outputs = model.eval()([{"image": image} for image in inputs])
result = [
    {
        "boxes": o["instances"].pred_boxes.tensor,
        "scores": o["instances"].scores,
        "classes": o["instances"].pred_classes,
        "masks": o["instances"].pred_masks,
    }
    for o in outputs
]
torch.save({"keys": sorted(model.state_dict()), "result": result}, f"{folder}/plain.pth")
assert "gradaug_det" not in sys.modules
"""


def test_loads_into_plain_detectron2_with_identical_detections(tmp_path):
    cfg = tiny_cfg("mask_rcnn")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model = tiny_model(cfg=cfg)
    train(model, GradAugHook(num_subnets=2, supervision="both"), steps=3)
    DetectionCheckpointer(model, str(tmp_path)).save("model_final")
    images = [item["image"] for item in tiny_batch(3)]
    torch.save(images, tmp_path / "inputs.pth")
    plain_cfg = cfg.clone()
    plain_cfg.pop("GRADAUG")
    plain_cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    (tmp_path / "plain.yaml").write_text(plain_cfg.dump())

    # A process of its own, in which gradaug_det is never imported.
    subprocess.run([sys.executable, "-c", PLAIN, str(tmp_path)], check=True, cwd=tmp_path)

    plain = torch.load(tmp_path / "plain.pth", weights_only=True)
    assert plain["keys"] == sorted(model.state_dict())
    with torch.no_grad():
        ours = model.eval()([{"image": image} for image in images])
    assert sum(len(o["instances"]) for o in ours) > 0
    for one, two in zip(ours, plain["result"], strict=True):
        assert torch.equal(one["instances"].pred_boxes.tensor, two["boxes"])
        assert torch.equal(one["instances"].scores, two["scores"])
        assert torch.equal(one["instances"].pred_classes, two["classes"])
        assert torch.equal(one["instances"].pred_masks, two["masks"])


def test_state_dict_keys_are_detectron2s():
    for kind in ("mask_rcnn", "retinanet"):
        cfg = tiny_cfg(kind)
        ours = build_model(cfg)
        cfg.MODEL.BACKBONE.NAME = cfg.MODEL.BACKBONE.NAME.replace("slimmable_", "")
        theirs = build_model(cfg)
        assert {k: v.shape for k, v in ours.state_dict().items()} == {
            k: v.shape for k, v in theirs.state_dict().items()
        }


def test_weights_of_which_nothing_fits_are_refused(tmp_path):
    model = tiny_model("mask_rcnn")
    body = torchvision.models.resnet18().state_dict()
    contents = {
        "torchvision": body,
        "MoCo": {"state_dict": {f"module.encoder_q.{k}": v for k, v in body.items()}, "epoch": 1},
        "MMDetection": {"state_dict": {f"backbone.{k}": v for k, v in body.items()}, "meta": {}},
        "timm": {"model": body, "optimizer": {}},
        "DDP": {f"module.{k}": v for k, v in body.items()},
        "pycls": {"model_state": body},
        "a head": {"model": {"roi_heads.box_predictor.cls_score.bias": torch.zeros(4)}},
        "another network": {"model": {k: v[None] for k, v in model.state_dict().items()}},
        "a terminal's codes": {"model": {"\x1b[31m": torch.zeros(4)}},
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.pth"
        torch.save(content, path)
        sentence = rf"0 of the 20 tensors of backbone.bottom_up .*{name}.*gradaug-det zoo convert"
        with pytest.raises(ZooError, match=sentence) as error:
            SafeCheckpointer(model).load(str(path), checkpointables=[])
        assert str(error.value).isprintable()
    for name in ("torchvision", "MoCo", "MMDetection", "timm", "DDP"):
        out = convert_file(
            tmp_path / f"{name}.pth", tmp_path / "out.pth", "detectron2", framework="torchvision"
        )
        SafeCheckpointer(model).load(str(out), checkpointables=[])
        taken = model.backbone.bottom_up.res2[0].conv1.weight
        assert torch.equal(taken, body["layer1.0.conv1.weight"])


def test_weights_that_look_odd_and_fit(tmp_path):
    model = tiny_model("mask_rcnn")
    state = model.state_dict()
    heads = ("cls_score", "bbox_pred", "mask_head.predictor", "fpn_")
    contents = [
        {"model": {k: v for k, v in state.items() if "bottom_up" in k}},
        {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        {"model": {k: v[:1] if any(h in k for h in heads) else v for k, v in state.items()}},
        # Images of four channels, so that the stem does not fit.
        {"model": state | {"backbone.bottom_up.stem.conv1.weight": torch.zeros(64, 4, 7, 7)}},
    ]
    for content in contents:
        torch.save(content, tmp_path / "weights.pth")
        SafeCheckpointer(model).load(str(tmp_path / "weights.pth"), checkpointables=[])
    assert SafeCheckpointer(model).load("") == {}
