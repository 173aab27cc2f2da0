"""Soft targets: zero where the networks agree, right under scale and mirror, gradient-free."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

from dataclasses import replace

import pytest
import torch
from mmengine.config import Config

from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.regularizer import gradaug_step, sub_network_passes
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.core.soft_targets import SubNetworkView
from gradaug_det.core.transforms import BatchTransform
from gradaug_det.errors import ConfigError
from gradaug_det.mmdet.batch import make_batch
from gradaug_det.mmdet.detector import GradAugDetector
from gradaug_det.mmdet.soft_targets_dense import DenseTargets
from gradaug_det.mmdet.soft_targets_two_stage import _transform_rois
from tests.mmdet.helpers import KINDS, collated, tiny_items, tiny_model, tiny_model_cfg

EXPECTED = {
    "mask_rcnn": {"rpn_cls", "rpn_box", "cls", "box", "mask"},
    "faster_rcnn": {"rpn_cls", "rpn_box", "cls", "box"},
    "cascade_mask_rcnn": {"rpn_cls", "rpn_box"}
    | {f"s{stage}.{name}" for stage in range(3) for name in ("cls", "box", "mask")},
    "retinanet": {"cls", "box"},
    "fcos": {"cls", "box", "centerness"},
    "atss": {"cls", "box", "centerness"},
}


def network(kind, supervision="soft", **kwargs):
    options = GradAugOptions(supervision=supervision)
    return GradAugDetector(tiny_model(kind, **kwargs), options)


def batch_of(model, seed=0):
    data = model.data_preprocessor(collated(tiny_items(seed)), True)
    return make_batch(data["inputs"], data["data_samples"])


@torch.no_grad()
def sharpen(model, factor=100.0):
    """Predictions that vary from place to place, as a trained head's do."""
    for name, parameter in model.named_parameters():
        last = ("rpn_cls", "fc_cls", "retina_cls", "conv_cls", "atss_cls", "centerness")
        if any(part in name for part in last) and name.endswith("weight"):
            parameter.mul_(factor)
        if name.endswith("rpn_cls.bias"):
            parameter.add_(8.0)  # an RPN that samples says 1 to what is an object to it


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_width_sub_network_of_the_same_images_agrees(kind):
    net = network(kind)
    sharpen(net.module)
    batch = batch_of(net.module)
    _, calls = net.full_pass(batch)
    losses = net.sub_network_pass(batch, calls, SubNetwork(0, 1.0, BatchTransform()))
    assert set(losses) == {f"soft_{name}" for name in EXPECTED[kind]}
    assert all(abs(loss.item()) < 1e-5 for loss in losses.values()), losses
    narrow = sub_network_passes(net, batch, calls, [SubNetwork(0, 0.7, BatchTransform(0.6))])[0]
    positive = {name for name, loss in narrow.losses.items() if loss > 1e-6}
    assert positive == set(narrow.losses), narrow.losses


def test_soft_weight_warms_up():
    losses = []
    for warmup, iteration in ((0, 0), (4, 0), (4, 3)):
        net = network("mask_rcnn", "both")
        net.options = replace(net.options, soft_warmup=warmup)
        torch.manual_seed(3)
        batch = batch_of(net.module)
        _, calls = net.full_pass(batch)
        sub = SubNetwork(0, 0.8, BatchTransform(0.6), seed=7, iteration=iteration)
        (result,) = sub_network_passes(net, batch, calls, [sub], lambda loss: None)
        losses.append(result.losses)
    assert any(name.startswith("soft_") for name in losses[0])
    for name, value in losses[0].items():
        share = 0.25 if name.startswith("soft_") else 1.0
        assert losses[1][name].item() == pytest.approx(share * value.item(), rel=1e-5), name
        assert losses[2][name].item() == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("kind", KINDS)
def test_targets_carry_no_gradient_and_both_is_the_sum(kind):
    torch.manual_seed(0)
    sub = SubNetwork(0, 0.8, BatchTransform(0.6, flip=True), seed=7)
    grads, backbone_calls = {}, []
    for supervision in ("soft", "labels", "both"):
        net = network(kind, supervision)
        net.backbone.register_forward_hook(lambda *_, s=supervision: backbone_calls.append(s))
        batch = batch_of(net.module)
        torch.manual_seed(3)
        gradaug_step(net, batch, [sub], lambda loss: None)
        torch.manual_seed(3)
        _, calls = net.full_pass(batch)
        sub_network_passes(net, batch, calls, [sub])
        grads[supervision] = {
            n: torch.zeros_like(p) if p.grad is None else p.grad
            for n, p in net.module.named_parameters()
        }
    # Twice each: a full pass and one sub-network pass, `both` too.
    assert [backbone_calls.count(s) for s in grads] == [4, 4, 4]
    for name, both in grads["both"].items():
        total = grads["soft"][name] + grads["labels"][name]
        assert torch.allclose(both, total, rtol=1e-3, atol=1e-4 * both.abs().max()), name


def test_proposals_move_with_their_images():
    rois = torch.tensor([[0, 10.0, 20, 50, 60], [1, 10, 20, 50, 60], [0, 0, 0, 128, 96]])
    sizes = [(96, 128), (80, 112)]
    view = SubNetworkView(None, {}, BatchTransform(0.5, flip=True), sizes)
    moved = _transform_rois(rois, view)
    assert torch.equal(moved[0], torch.tensor([0, 39.0, 10, 59, 30]))
    assert torch.equal(moved[1], torch.tensor([1, 31.0, 10, 51, 30]))
    assert torch.equal(moved[2], torch.tensor([0, 0.0, 0, 64, 48]))


@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet", "atss", "fcos"])
@pytest.mark.parametrize(
    "transform", [BatchTransform(0.571), BatchTransform(flip=True), BatchTransform(0.8, flip=True)]
)
def test_dense_targets_follow_an_object_through_the_transform(kind, transform):
    """Predictions made by hand: every prior predicts one object, and where it is itself."""
    model = tiny_model(kind)
    head = model.rpn_head if kind == "faster_rcnn" else model.bbox_head
    targets, sizes = DenseTargets(head), [(192, 256), (160, 224)]
    new_size = transform.output_size((192, 256))
    grid = targets.geometry.grid(torch.zeros(1))
    objects = torch.tensor([[40.0, 50, 140, 130], [20, 30, 90, 80]])
    strides = grid.strides

    def predictions(size, where):
        """Per level (N, A * K, H, W) as the head gives them; ``where``: positions -> logits."""
        shapes = [(-(-size[0] // int(y)), -(-size[1] // int(x))) for x, y in strides]
        priors = grid.anchors(shapes)
        centres = (priors[:, :2] + priors[:, 2:]) / 2
        logits, raw = [], []
        for image, box in enumerate(objects):
            boxes = box.expand(len(priors), 4)
            if kind == "fcos":
                distances = torch.cat([centres - boxes[:, :2], boxes[:, 2:] - centres], dim=1)
                raw.append(distances)
            else:
                raw.append(targets.geometry.encode(priors, boxes))
            logits.append(where(centres, sizes[image])[:, None].expand(-1, head.cls_out_channels))
        outs = [torch.stack(logits), torch.stack(raw), torch.stack(logits)[..., :1]]
        counts = [h * w * len(cell) for (h, w), cell in zip(shapes, grid.cells, strict=True)]
        per_level = []
        for out in outs:
            levels = [
                part.reshape(2, h, w, -1).permute(0, 3, 1, 2)
                for part, (h, w) in zip(out.split(counts, dim=1), shapes, strict=True)
            ]
            per_level.append(levels)
        return per_level if kind in ("fcos", "atss") else per_level[:2]

    full = predictions((192, 256), lambda at, size: at[:, 0] + 3 * at[:, 1])

    def original(at, size):
        at = transform.inverse_boxes(at.repeat(1, 2), size)[:, :2]
        return at[:, 0] + 3 * at[:, 1]

    sub = predictions(new_size, original)
    pair = targets.align(full, sub, SubNetworkView(None, {}, transform, sizes))
    priors, shares = pair.anchors, []
    for image, size in enumerate(sizes):
        valid = pair.valid[image]
        expected = transform.boxes(objects[image], size)
        boxes = pair.target_boxes[image][valid]
        assert torch.allclose(boxes, expected.expand_as(boxes), atol=1e-2)
        # The nearest prior of the full pass is half a stride away at most, a whole one at the
        # border, in x and in y; its level may have twice the stride.
        off = (pair.logits[image, valid, 0] - pair.target_logits[image, valid, 0]).abs()
        assert (off <= 8 * pair.strides[valid] + 1e-3).all()
        assert (off < 2.5 * pair.strides[valid]).float().mean() > 0.75
        height, width = transform.output_size(size)
        inside = ((priors[:, :2] + priors[:, 2:]) / 2 < torch.tensor([width, height])).all(dim=1)
        assert not (valid & ~inside).any()
        shares.append((valid.sum() / inside.sum()).item())
        if pair.centerness is not None:
            assert torch.equal(
                pair.target_centerness[image][valid], pair.target_logits[image, valid, 0]
            )
    assert min(shares) > 0.9


DOUBLE_HEAD = dict(
    type="DoubleConvFCBBoxHead",
    in_channels=16,
    num_classes=3,
    roi_feat_size=5,
    num_convs=1,
    num_fcs=1,
    conv_out_channels=16,
    fc_out_channels=16,
    _delete_=True,
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(roi_head=dict(type="DoubleHeadRoIHead", reg_roi_scale_factor=1.3)), "DoubleHeadRoI"),
        (dict(roi_head=dict(bbox_head=DOUBLE_HEAD)), "the box head DoubleConvFCBBoxHead"),
        (
            dict(rpn_head=dict(anchor_generator=dict(type="LegacyAnchorGenerator"))),
            "the anchor generator LegacyAnchorGenerator",
        ),
        (
            dict(rpn_head=dict(anchor_generator=dict(centers=[(1, 1)] * 5))),
            "anchors whose centres are not at one offset",
        ),
        (
            dict(roi_head=dict(bbox_head=dict(loss_cls=dict(use_sigmoid=True)))),
            "a box head without softmax scores",
        ),
    ],
)
def test_what_has_no_soft_targets_is_named(change, message):
    cfg = Config(dict(model=tiny_model_cfg("faster_rcnn").to_dict()))
    cfg.merge_from_dict(dict(model=change))
    model = tiny_model(cfg=cfg.model)
    with pytest.raises(ConfigError, match=rf"supervision cannot be 'soft'.*{message}.*'labels'"):
        GradAugDetector(model, GradAugOptions(supervision="soft"))
    GradAugDetector(model, GradAugOptions(supervision="labels"))
