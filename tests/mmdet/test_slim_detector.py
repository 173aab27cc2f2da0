"""Sub-networks whose neck and heads are narrow, too."""

from fractions import Fraction

import pytest
import torch
from mmdet.models.dense_heads import rpn_head
from mmengine.config import Config

from gradaug_det.core.slimming import at_width, set_width
from gradaug_det.mmdet.backbone import slimmed_part
from gradaug_det.mmdet.config import trained_options
from gradaug_det.mmdet.export_config import plain_config
from gradaug_det.mmdet.hook import GradAugHook
from tests.core.narrow import check_against_narrow

from .helpers import KINDS, collated, tiny_items, tiny_model, tiny_model_cfg


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_a_narrow_detector(kind, monkeypatch):
    # MMCV's own wants float32.
    nms = rpn_head.batched_nms
    in_float32 = lambda boxes, scores, *rest: nms(boxes.float(), scores.float(), *rest)  # noqa: E731
    monkeypatch.setattr(rpn_head, "batched_nms", in_float32)
    model = slimmed_part(tiny_model(kind, double=True), "detector")
    # As the export writes it.
    half = plain_config(Config({"model": tiny_model_cfg(kind)}), Fraction(1, 2), Fraction(1, 2))
    narrow = tiny_model(cfg=half.model, double=True)
    data = model.data_preprocessor(collated(tiny_items()), True)
    data["inputs"] = data["inputs"].double()

    def losses(detector):
        _, terms = detector.parse_losses(detector(**data, mode="loss"))
        return {name: term for name, term in terms.items() if "loss" in name and name != "loss"}

    check_against_narrow(model, narrow, losses, 0.5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["retinanet", "fcos", "atss"])
def test_a_dense_head_is_kept_whole(kind):
    """MMDetection calls its `forward`, so that no hook of it runs."""
    model = slimmed_part(tiny_model(kind).eval(), "detector", ["bbox_head"])
    shapes = [weight.shape for weight in model.bbox_head.parameters()]
    lateral = model.neck.lateral_convs[0].conv
    channels = lateral.out_channels
    with at_width(model, 0.5, "frozen"):
        assert lateral.weight.shape[0] == channels // 2
        assert [weight.shape for weight in model.bbox_head.parameters()] == shapes
        (found,) = model.test_step(collated(tiny_items()[:1]))
    assert found.pred_instances.scores.isfinite().all()


@pytest.mark.parametrize("kind", ["GradAugHook", "mmengine.GradAugHook", GradAugHook])
def test_a_config_says_what_was_trained(kind):
    hooks = [{"type": kind, "passes": "alternating", "slim": "detector"}]
    options = trained_options(Config({"custom_hooks": hooks}))
    assert options.slim == "detector" and options.trained_width == 0.5
    hooks[0] |= {"passes": "added", "num_subnets": 0}
    plain = trained_options(Config({"custom_hooks": hooks}))
    assert plain.slim == "detector" and plain.trained_width == 1  # so that it can be a control


@torch.no_grad()
def test_a_detector_runs_at_the_width_that_is_set():
    model = slimmed_part(tiny_model("faster_rcnn"), "detector").eval()

    def scores():
        (found,) = model.test_step(collated(tiny_items()[:1]))
        return found.pred_instances.scores

    whole = scores()
    with at_width(model, 0.5, "frozen"):
        half = scores()
    assert not torch.equal(whole, half)
    for width, wanted in ((0.5, half), (1, whole)):
        set_width(model, width)
        torch.testing.assert_close(scores(), wanted, rtol=0, atol=0)
