"""A dataset and one detector's weights in the files of both frameworks."""

import pytest
import torch

from gradaug_det.benchmark.run import load_data
from gradaug_det.mini_coco import build_mini_coco
from tests.cross.helpers import ROOT, detectors
from tests.export.helpers import randomize_statistics

CONFIGS = {
    "detectron2": ROOT / "configs/detectron2/mini_mask_rcnn_R_18_FPN_gradaug.yaml",
    "mmdet": ROOT / "configs/mmdet/mini_mask-rcnn_r18_fpn_gradaug.py",
}
IMAGES = 4


@pytest.fixture(scope="package")
def coco(tmp_path_factory):
    return build_mini_coco(tmp_path_factory.mktemp("data") / "mini_coco", train=1, val=IMAGES)


@pytest.fixture(scope="package")
def data(coco):
    return load_data(coco / "annotations/instances_val.json", coco / "val", "mini-COCO")


@pytest.fixture(scope="package")
def checkpoints(tmp_path_factory):
    """Framework -> checkpoint of the mini detector."""
    folder = tmp_path_factory.mktemp("checkpoints")
    (_, ours), (_, theirs) = detectors()
    randomize_statistics(ours.backbone.bottom_up)
    randomize_statistics(theirs.backbone)
    torch.save({"model": ours.state_dict(), "iteration": 3}, folder / "detectron2.pth")
    torch.save(
        {
            "state_dict": theirs.state_dict(),
            "meta": {"dataset_meta": {"classes": tuple("abcdefghij")}, "iter": 3},
        },
        folder / "mmdet.pth",
    )
    return {"detectron2": folder / "detectron2.pth", "mmdet": folder / "mmdet.pth"}
