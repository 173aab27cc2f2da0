"""Soft targets of each detector: where they vanish, what they see, what they refuse."""

import pytest
import torch
from detectron2.modeling import build_model

from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.core.slimming import at_width
from gradaug_det.core.soft_targets import SubNetworkView
from gradaug_det.core.transforms import BatchTransform
from gradaug_det.d2.detector import GradAugDetector
from gradaug_det.d2.soft_targets import soft_targets
from gradaug_det.errors import ConfigError

from .helpers import KINDS, storage, tiny_batch, tiny_cfg, tiny_model


def sub_losses(network, batch, width=1.0, transform=None, seed=0):
    torch.manual_seed(seed)
    with storage():
        _, target = network.full_pass(batch)
        with at_width(network.slimmed, width):
            sub = SubNetwork(0, width, transform or BatchTransform())
            return network.sub_network_pass(batch, target, sub), target


def confident(model):
    """Box and score heads far from their initial values, so that every soft loss has weight."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(k in name for k in ("rpn_head", "predictor", "cls_score", "bbox_pred")):
                parameter.add_(torch.randn_like(parameter) * 0.05)
            if name.endswith("objectness_logits.bias"):
                parameter.add_(8.0)  # an RPN that samples says 1 to what is an object to it
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_the_full_network_on_the_same_batch_has_no_loss(kind):
    network = GradAugDetector(confident(tiny_model(kind)), GradAugOptions(supervision="soft"))
    losses, _ = sub_losses(network, tiny_batch())
    assert len(losses) == {"mask_rcnn": 5, "faster_rcnn": 4, "cascade_mask_rcnn": 9}.get(kind, 2)
    for name, loss in losses.items():
        assert abs(loss.item()) < 1e-4, name


@pytest.mark.parametrize("kind", KINDS)
def test_narrow_or_transformed_it_has(kind):
    network = GradAugDetector(confident(tiny_model(kind)), GradAugOptions(supervision="soft"))
    for width, transform in (
        (0.5, BatchTransform()),
        (1.0, BatchTransform(0.6)),
        (1.0, BatchTransform(1.0, True)),
    ):
        losses, _ = sub_losses(network, tiny_batch(), width, transform)
        for name, loss in losses.items():
            assert loss.isfinite(), name
            assert loss.item() > 1e-9, (name, width, transform)


def blind(model):
    """Heads that cannot tell left from right: symmetric kernels, and no horizontal shift."""
    heads = [model.proposal_generator, model.roi_heads]
    with torch.no_grad():
        for head in heads:
            for parameter in head.parameters():
                if parameter.dim() == 4:
                    parameter.copy_((parameter + parameter.flip(3)) / 2)
        fc = model.roi_heads.box_head.fc1.weight
        maps = fc.view(len(fc), -1, 5, 5)
        maps.copy_((maps + maps.flip(3)) / 2)
        for layer in (
            model.proposal_generator.rpn_head.anchor_deltas,
            model.roi_heads.box_predictor.bbox_pred,
        ):
            layer.weight[0::4] = 0
            layer.bias[0::4] = 0
    return model


def test_mirrored_features_meet_mirrored_targets_exactly():
    """Boxes, anchors, deltas and masks are mirrored so well that blind heads see no difference."""
    cfg = tiny_cfg("mask_rcnn")
    cfg.MODEL.ANCHOR_GENERATOR.OFFSET = 0.5  # else the grid of anchors is not symmetric itself
    model = blind(confident(tiny_model(cfg=cfg)))
    network = GradAugDetector(model, GradAugOptions(supervision="soft"))
    batch, sizes = tiny_batch(sizes=((96, 128), (96, 128))), [(96, 128), (96, 128)]
    kept = []
    model.backbone.register_forward_hook(lambda _m, _i, out: kept.append(out))
    torch.manual_seed(0)
    with storage():
        _, target = network.full_pass(batch)
    flipped = {k: v.flip(3) for k, v in kept[0].items()}
    mirrored, same = (
        network.targets.losses(SubNetworkView(flipped, target, BatchTransform(1.0, flip), sizes))
        for flip in (True, False)
    )
    for name, loss in mirrored.items():
        assert abs(loss.item()) < 1e-4, name
        assert same[name].item() > 10 * abs(loss.item()), name


def test_targets_are_the_proposals_that_were_trained_on():
    model = tiny_model("cascade_mask_rcnn")
    network = GradAugDetector(model, GradAugOptions(supervision="soft"))
    seen = []
    pooler = model.roi_heads.box_pooler
    handle = pooler.register_forward_pre_hook(
        lambda _m, args: seen.append([b.tensor.clone() for b in args[1]])
    )
    transform = BatchTransform(0.5)
    batch = tiny_batch()
    sub_losses(network, batch, 0.9, transform)
    handle.remove()
    assert len(seen) == 6  # three stages of the full pass, three of the sub-network
    for full, sub in zip(seen[:3], seen[3:], strict=True):
        for item, one, two in zip(batch, full, sub, strict=True):
            size = tuple(item["image"].shape[-2:])
            assert torch.allclose(transform.boxes(one, size), two)


def test_nothing_keeps_the_full_passes_graph():
    network = GradAugDetector(tiny_model("mask_rcnn"), GradAugOptions(supervision="soft"))
    _, target = sub_losses(network, tiny_batch())

    def tensors(value):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            for item in value.values():
                yield from tensors(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                yield from tensors(item)

    found = list(tensors(target))
    assert len(found) > 10
    assert not any(t.requires_grad for t in found)


def unsupported(change):
    cfg = tiny_cfg()
    change(cfg)
    return build_model(cfg)


def _c4(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_slimmable_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 256
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
    cfg.MODEL.RPN.IN_FEATURES = ["res4"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32, 64]]
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]


def _keypoints(cfg):
    cfg.MODEL.KEYPOINT_ON = True


def _panoptic(cfg):
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"


def _proposals_only(cfg):
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_c4, "the ROI heads Res5ROIHeads"),
        (_keypoints, "keypoint heads"),
        (_panoptic, "PanopticFPN"),
        (_proposals_only, "ProposalNetwork"),
    ],
)
def test_other_detectors_name_labels(change, what):
    model = unsupported(change)
    with pytest.raises(ConfigError, match=rf"not implemented for {what}; use 'labels'"):
        soft_targets(model)
    GradAugDetector(model, GradAugOptions(supervision="labels"))  # which they can have
