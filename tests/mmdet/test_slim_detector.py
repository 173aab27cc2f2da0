"""Sub-networks whose neck and heads are narrow, too."""

import pytest
from mmdet.models.dense_heads import rpn_head

from gradaug_det.mmdet.backbone import slimmed_part
from tests.core.narrow import check_against_narrow

from .helpers import KINDS, collated, tiny_items, tiny_model, tiny_model_cfg


def narrow_cfg(kind):
    """Half the channels of ``tiny_model_cfg``."""
    cfg = tiny_model_cfg(kind)
    cfg.backbone.base_channels = 32
    cfg.neck.in_channels = [channels // 2 for channels in cfg.neck.in_channels]
    parts = [cfg.neck, cfg.get("rpn_head"), cfg.get("bbox_head")]
    for part in (cfg.get("roi_head") or {}).values():
        parts += part if isinstance(part, list) else [part]
    for part in filter(lambda part: isinstance(part, dict), parts):
        for key in ("in_channels", "out_channels", "feat_channels", "conv_out_channels"):
            if isinstance(part.get(key), int):
                part[key] //= 2
        if "fc_out_channels" in part:
            part.fc_out_channels //= 2
        if "norm_cfg" in part and "num_groups" in (part.norm_cfg or {}):
            part.norm_cfg.num_groups //= 2
    return cfg


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_a_narrow_detector(kind, monkeypatch):
    # MMCV's own wants float32.
    nms = rpn_head.batched_nms
    in_float32 = lambda boxes, scores, *rest: nms(boxes.float(), scores.float(), *rest)  # noqa: E731
    monkeypatch.setattr(rpn_head, "batched_nms", in_float32)
    model = slimmed_part(tiny_model(kind, double=True), "detector")
    narrow = tiny_model(cfg=narrow_cfg(kind), double=True)
    data = model.data_preprocessor(collated(tiny_items()), True)
    data["inputs"] = data["inputs"].double()

    def losses(detector):
        _, terms = detector.parse_losses(detector(**data, mode="loss"))
        return {name: term for name, term in terms.items() if "loss" in name and name != "loss"}

    check_against_narrow(model, narrow, losses, 0.5)
