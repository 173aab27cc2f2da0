"""``gradaug-det build-mini-coco``: build the embedded detection data set."""

from __future__ import annotations

import argparse
from pathlib import Path

from gradaug_det.mini_coco.garments import CLASS_NAMES
from gradaug_det.mini_coco.render import MIN_SCALE
from gradaug_det.mini_coco.scenes import SEGMENTATIONS, build_mini_coco


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not HxW in pixels, such as 192x256")
    return int(height), int(width)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="directory to make")
    add("--train", type=int, default=600, metavar="N", help="train images (600)")
    add("--val", type=int, default=400, metavar="N", help="val images (400)")
    add("--seed", type=int, default=0, help="everything random depends on it (0)")
    add("--size", type=_size, default=(192, 256), metavar="HxW", help="image size (192x256)")
    text = "format of ordinary instances; Detectron2's default reads polygons only (polygon)"
    add("--segmentation", choices=SEGMENTATIONS, default="polygon", help=text)
    text = "garments that are shown, and the categories (all ten)"
    add("--classes", nargs="+", default=CLASS_NAMES, metavar="NAME", help=text)
    text = "of the smallest garment, up to 5 (0.7, some 20 pixels)"
    add("--min-scale", type=float, default=MIN_SCALE, metavar="X", help=text)
    text = "for choosing settings: val images of train garments that no train image shows"
    add("--dev", action="store_true", help=text)
    text = "take garments from the full Fashion-MNIST, not from the embedded subset"
    add("--fashion-mnist", type=Path, metavar="DIR", help=text)
    add("--jobs", type=int, default=1, metavar="N", help="processes that draw (1)")
    add("--force", action="store_true", help="replace an earlier build in DIR")


def run(args: argparse.Namespace) -> int:
    options = ("out", "train", "val", "seed", "size", "segmentation", "classes", "min_scale")
    options += ("dev", "fashion_mnist", "jobs", "force")
    build_mini_coco(**{name: getattr(args, name) for name in options})
    return 0
