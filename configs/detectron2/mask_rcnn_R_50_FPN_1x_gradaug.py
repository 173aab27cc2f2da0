"""Mask R-CNN R50-FPN 1x with GradAug as a LazyConfig, on top of Detectron2's own."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from gradaug_det.d2 import GradAugHook

_base = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
model, dataloader, optimizer = _base.model, _base.dataloader, _base.optimizer
lr_multiplier, train = _base.lr_multiplier, _base.train
train.output_dir = "output/mask_rcnn_R_50_FPN_1x_gradaug_lazy"

gradaug = L(GradAugHook)()  # every setting at its default; see docs/configuration.md
