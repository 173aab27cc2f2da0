"""The embedded data set: real garments (Fashion-MNIST), and mini-COCO composed from them."""

from gradaug_det.mini_coco.garments import CLASS_NAMES, load_garments
from gradaug_det.mini_coco.render import render_garment_crops
from gradaug_det.mini_coco.scenes import build_mini_coco

__all__ = ["CLASS_NAMES", "build_mini_coco", "load_garments", "render_garment_crops"]
