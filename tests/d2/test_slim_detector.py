"""Sub-networks whose neck and heads are narrow, too."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from gradaug_det.core.slimming import at_width
from gradaug_det.d2.backbone import slimmed_part
from tests.core.narrow import check_against_narrow

from .helpers import KINDS, double_model, tiny_batch, tiny_cfg, tiny_model


def bottleneck_cfg(kind, width=1.0):
    """``tiny_cfg`` over a ResNet-50, which Detectron2 builds with any number of channels."""
    cfg = tiny_cfg(kind)
    cfg.MODEL.RESNETS.DEPTH = 50
    for node, key, channels in (
        (cfg.MODEL.RESNETS, "STEM_OUT_CHANNELS", 16),
        (cfg.MODEL.RESNETS, "RES2_OUT_CHANNELS", 32),
        (cfg.MODEL.RESNETS, "WIDTH_PER_GROUP", 8),
        (cfg.MODEL.FPN, "OUT_CHANNELS", 16),
        (cfg.MODEL.ROI_MASK_HEAD, "CONV_DIM", 16),
        (cfg.MODEL.ROI_BOX_HEAD, "FC_DIM", 32),
    ):
        node[key] = int(width * channels)
    return cfg


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_a_narrow_detector(kind):
    model = double_model(slimmed_part(tiny_model(cfg=bottleneck_cfg(kind)), "detector"))
    narrow = tiny_model(cfg=bottleneck_cfg(kind, 0.5), double=True)
    batch = tiny_batch()
    with EventStorage():
        check_against_narrow(model, narrow, lambda detector: detector(batch), 0.5)


def test_images_of_one_channel():
    cfg = bottleneck_cfg("retinanet")
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [100.0], [50.0]
    model = slimmed_part(build_model(cfg), "detector")
    with at_width(model, 0.5):
        assert model.backbone.bottom_up.stem.conv1.weight.shape == (8, 1, 7, 7)


def test_a_compiled_detector_is_slimmed_as_it_is():
    model = tiny_model()
    assert slimmed_part(torch.compile(model), "detector") is model
