"""The embedded data set: real garments (Fashion-MNIST), and mini-COCO composed from them.

Needs NumPy and Pillow only; compressed run lengths need pycocotools as well.
"""

from gradaug_det.datasets.garments import CLASS_NAMES, build_garments, load_garments
from gradaug_det.datasets.mini_coco import build_mini_coco
from gradaug_det.datasets.render import render_garment_crops

__all__ = [
    "CLASS_NAMES",
    "build_garments",
    "build_mini_coco",
    "load_garments",
    "render_garment_crops",
]
