"""The embedded data set: real garments (Fashion-MNIST), and mini-COCO composed from them.

Needs NumPy and Pillow only; compressed run lengths need pycocotools as well.
"""

from gradaug_det.mini_coco.garments import CLASS_NAMES, build_garments, load_garments
from gradaug_det.mini_coco.render import render_garment_crops
from gradaug_det.mini_coco.scenes import build_mini_coco

__all__ = [
    "CLASS_NAMES",
    "build_garments",
    "build_mini_coco",
    "load_garments",
    "render_garment_crops",
]
