"""What training with the hook leaves behind is an ordinary Detectron2 checkpoint."""

import subprocess
import sys

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from gradaug_det.d2 import GradAugHook

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
