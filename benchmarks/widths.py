"""Multiply-adds and parameters of detectors at widths, their backbone or all of them narrow.

Detectors of both frameworks as their model zoos configure them, on an image of 800x1333 pixels.
Counted from shapes, in seconds: convolutions and matrix products give zeros. Writes widths.json and
widths.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from gradaug_det.benchmark.cost import at_detector_width, count_gflops, count_parameters
from gradaug_det.reports.rendering import write_files

ROOT = Path(__file__).resolve().parents[1]
HEIGHT, WIDTH = 800, 1333
WIDTHS = (0.75, 0.5)
KINDS = {
    "Detectron2": {
        "Faster R-CNN": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
        "Mask R-CNN": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
        "Cascade Mask R-CNN": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
        "RetinaNet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    },
    "MMDetection": {
        "Faster R-CNN": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
        "Mask R-CNN": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
        "Cascade Mask R-CNN": "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
        "RetinaNet": "retinanet/retinanet_r50_fpn_1x_coco.py",
        "FCOS": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
        "ATSS": "atss/atss_r50_fpn_1x_coco.py",
    },
}


class Zeros(TorchDispatchMode):
    """Within the block, convolutions and matrix products give zeros, of the shapes they have."""

    def __torch_dispatch__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func not in _COUNTED:
            return func(*args, **(kwargs or {}))
        shapes = tree_map(lambda x: x.to("meta") if isinstance(x, Tensor) else x, args)
        return args[0].new_zeros(func(*shapes, **(kwargs or {})).shape)


_COUNTED = (
    torch.ops.aten.convolution.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.mm.default,
)


@dataclass
class Built:
    """A detector, as :mod:`gradaug_det.benchmark.cost` measures it."""

    model: nn.Module
    run: Callable[[], int]  # returns how much it found
    slimmed: nn.Module | None = None
    divisor: int = 1
    statistics: tuple = ()


def build_detectron2(config: str, image: Tensor) -> tuple[Built, Callable]:
    from detectron2 import model_zoo
    from detectron2.modeling import build_model

    from gradaug_det.d2.backbone import slimmed_part

    cfg = model_zoo.get_config(config)
    cfg.MODEL.DEVICE = "cpu"
    # As many proposals and detections as the config lets through.
    cfg.MODEL.RPN.NMS_THRESH, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1.0, 0.0
    model = build_model(cfg).eval()
    item = {"image": image, "height": HEIGHT, "width": WIDTH}
    run = lambda: len(model([item])[0]["instances"])  # noqa: E731
    return Built(model, run), slimmed_part


def build_mmdet(config: str, image: Tensor) -> tuple[Built, Callable]:
    from mmdet.registry import MODELS
    from mmdet.structures import DetDataSample
    from mmengine.hub import get_config
    from mmengine.registry import init_default_scope

    from gradaug_det.mmdet.backbone import slimmed_part

    init_default_scope("mmdet")
    cfg = get_config(f"mmdet::{config}").model
    cfg.backbone.init_cfg = None
    if "rcnn" in cfg.test_cfg:
        cfg.test_cfg.rpn.nms.iou_threshold, cfg.test_cfg.rcnn.score_thr = 1.0, 0.0
    model = MODELS.build(cfg).eval()
    size = {"img_shape": (HEIGHT, WIDTH), "ori_shape": (HEIGHT, WIDTH), "scale_factor": (1.0, 1.0)}
    item = {"inputs": [image], "data_samples": [DetDataSample(metainfo=size)]}
    run = lambda: len(model.test_step(item)[0].pred_instances)  # noqa: E731
    return Built(model, run), slimmed_part


@torch.no_grad()
def measure(build: Callable[[str, Tensor], tuple[Built, Callable]], config: str) -> dict[str, Any]:
    """Returns multiply-adds in 10^9 and parameters in 10^6: full, and by ``slim`` and width."""
    torch.manual_seed(0)
    image = torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8)
    built, slimmed_part = build(config, image)
    with Zeros():
        record: dict[str, Any] = {"found": built.run()}
    record["full"] = _costs(built, 1)
    for slim in ("backbone", "detector"):
        built.slimmed = slimmed_part(built.model, slim)
        record[slim] = {str(width): _costs(built, width) for width in WIDTHS}
    return record


def _costs(built: Built, width: float) -> list[float]:
    with at_detector_width(built, width), Zeros():
        return [count_gflops(built.run), count_parameters(built, width) / 1e6]


def write_widths(content: dict[str, Any], out: Path) -> Path:
    """Writes ``widths.json`` and ``widths.md`` into a folder; returns the second."""
    columns = [f"{slim} {width}" for slim in ("backbone", "detector") for width in WIDTHS]
    rows = [
        "# Multiply-adds at widths",
        "",
        f"An image of {HEIGHT}x{WIDTH} pixels, ResNet-50 with FPN, 1000 proposals and 100 masks "
        "where there are any: multiply-adds in 10^9 (and",
        "parameters in 10^6), then the share that is left of them at a width of the backbone and "
        "of the whole detector. By `python -m benchmarks.widths`.",
        "",
        f"| | | 10^9 (10^6) | {' | '.join(columns)} |",
        f"|:--|:--|--:|{'--:|' * len(columns)}",
    ]
    for framework, records in content.items():
        for kind, record in records.items():
            full = record["full"]
            shares = [
                f"{gflops / full[0]:.2f} ({parameters / full[1]:.2f})"
                for slim in ("backbone", "detector")
                for gflops, parameters in record[slim].values()
            ]
            first = f"{full[0]:.0f} ({full[1]:.1f})"
            rows.append(f"| {framework} | {kind} | {first} | {' | '.join(shares)} |")
    texts = {"widths.json": json.dumps(content, indent=1), "widths.md": "\n".join(rows)}
    write_files(out, {name: f"{text}\n" for name, text in texts.items()})
    return out / "widths.md"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.widths", description=__doc__)
    parser.add_argument("--kinds", nargs="+", help="some of the detectors, by name (all)")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    args = parser.parse_args(argv)
    logging.disable(logging.INFO)
    builders = {"Detectron2": build_detectron2, "MMDetection": build_mmdet}
    content = {
        framework: {
            kind: measure(builders[framework], config)
            for kind, config in configs.items()
            if not args.kinds or kind in args.kinds
        }
        for framework, configs in KINDS.items()
    }
    print(write_widths(content, args.out).read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
