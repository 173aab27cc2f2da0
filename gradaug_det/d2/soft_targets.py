"""Soft targets of Detectron2's detectors; see :mod:`gradaug_det.core.soft_targets`."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.modeling import GeneralizedRCNN, PanopticFPN, RetinaNet
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers, StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from gradaug_det.core import losses as soft
from gradaug_det.core.anchors import AnchorGrid
from gradaug_det.core.regularizer import Losses
from gradaug_det.core.soft_targets import (
    DensePair,
    HeadOutputs,
    Modules,
    SoftTargets,
    SubNetworkView,
    align_dense,
    compare_box_head,
    compare_focal,
    compare_objectness,
    require,
    select_output,
    unsupported,
)


def soft_targets(detector: nn.Module) -> SoftTargets:
    """Returns the soft targets of a detector.

    Raises:
        ConfigError: they are not implemented for this detector; ``labels`` works with any.
    """
    if isinstance(detector, RetinaNet):
        return RetinaNetTargets(detector)
    if isinstance(detector, GeneralizedRCNN) and not isinstance(detector, PanopticFPN):
        return RCNNTargets(detector)
    raise unsupported(type(detector).__name__)


def _select_boxes(args: tuple, _kwargs: dict, _output: Any) -> list[Tensor]:
    """Keeps the boxes of each image that an ROIPooler was called with."""
    return [boxes.tensor.detach() for boxes in args[1]]


def _select_classes(args: tuple, _kwargs: dict, _output: Any) -> Tensor:
    """Keeps the classes of the foreground proposals that a mask head was trained on."""
    return torch.cat([instances.gt_classes for instances in args[1]])


class _Anchors:
    """The anchors of an RPN or a RetinaNet, and the deltas that are predicted for them."""

    def __init__(self, generator: nn.Module, coder: Box2BoxTransform) -> None:
        require(coder, Box2BoxTransform, "the box coder", exact=False)
        require(generator, DefaultAnchorGenerator, "the anchor generator", exact=False)
        self.generator, self.coder = generator, coder

    def align(
        self, full: HeadOutputs, sub: HeadOutputs, view: SubNetworkView
    ) -> tuple[DensePair, Tensor]:
        """Returns the predictions of both passes, and the target boxes as (N, A', 4) deltas."""
        # Made anew each time, since a model may move to another device.
        strides = [(float(s), float(s)) for s in self.generator.strides]
        grid = AnchorGrid(list(self.generator.cell_anchors), strides, self.generator.offset)

        def decode(anchors: Tensor, deltas: Tensor, _strides: Tensor) -> Tensor:
            return self.coder.apply_deltas(deltas, anchors)

        pair = align_dense(grid, decode, full, sub, view)
        encoded = [self.coder.get_deltas(pair.anchors, boxes) for boxes in pair.target_boxes]
        return pair, torch.stack(encoded)


class RCNNTargets(SoftTargets):
    """RPN, box head(s) and mask head of a Faster, Mask or Cascade R-CNN with FPN."""

    def __init__(self, detector: GeneralizedRCNN) -> None:
        self.rpn, self.heads = detector.proposal_generator, detector.roi_heads
        require(self.rpn, RPN, "the proposal generator")
        self.cascade = isinstance(self.heads, CascadeROIHeads)
        kind = CascadeROIHeads if self.cascade else StandardROIHeads
        require(self.heads, kind, "the ROI heads")
        predictor = self.heads.box_predictor
        self.predictors = list(predictor) if self.cascade else [predictor]
        for predictor in self.predictors:
            require(predictor, FastRCNNOutputLayers, "the box predictor")
        if self.heads.mask_on:
            require(self.heads.mask_head, MaskRCNNConvUpsampleHead, "the mask head")
        if self.heads.keypoint_on:
            raise unsupported("keypoint heads")
        self.anchors = _Anchors(self.rpn.anchor_generator, self.rpn.box2box_transform)

    def record(self) -> Modules:
        modules = {
            "rpn": (self.rpn.rpn_head, select_output),
            "boxes": (self.heads.box_pooler, _select_boxes),
        }
        for stage, predictor in enumerate(self.predictors):
            modules[f"box{stage}"] = (predictor, select_output)
        if self.heads.mask_on:
            modules["mask_boxes"] = (self.heads.mask_pooler, _select_boxes)
            modules["mask_classes"] = (self.heads.mask_head, _select_classes)
            modules["masks"] = (self.heads.mask_head.predictor, select_output)
        return modules

    def losses(self, view: SubNetworkView) -> Losses:
        losses = self._rpn_losses(view)
        for stage, boxes in enumerate(view.calls["boxes"]):
            sub = self._box_stage(view, _transform_boxes(boxes, view), stage)
            own = compare_box_head(sub, view.calls[f"box{stage}"][0], view.transform)
            suffix = f"_stage{stage}" if self.cascade else ""
            losses |= {name + suffix: loss for name, loss in own.items()}
        if self.heads.mask_on:
            losses["mask"] = self._mask_loss(view)
        return losses

    def _rpn_losses(self, view: SubNetworkView) -> Losses:
        sub = self.rpn.rpn_head([view.features[f] for f in self.rpn.in_features])
        pair, target_deltas = self.anchors.align(view.calls["rpn"][0], sub, view)
        samples = float(self.rpn.batch_size_per_image * len(view.sizes))
        loss, weights, normalizer = compare_objectness(pair, samples, self.rpn.positive_fraction)
        boxes = soft.expected_box_l1(pair.deltas, target_deltas, weights, normalizer)
        return {"rpn_cls": loss, "rpn_loc": boxes}

    def _box_stage(
        self, view: SubNetworkView, boxes: list[Boxes], stage: int
    ) -> tuple[Tensor, Tensor]:
        heads = self.heads
        levels = [view.features[f] for f in heads.box_in_features]
        if self.cascade:
            proposals = [Instances((0, 0), proposal_boxes=b) for b in boxes]
            return heads._run_stage(levels, proposals, stage)
        return heads.box_predictor(heads.box_head(heads.box_pooler(levels, boxes)))

    def _mask_loss(self, view: SubNetworkView) -> Tensor:
        heads, calls = self.heads, view.calls
        boxes = _transform_boxes(calls["mask_boxes"][0], view)
        pooled = heads.mask_pooler([view.features[f] for f in heads.mask_in_features], boxes)
        target = view.transform.box_crops(calls["masks"][0])
        return soft.mask_kl(heads.mask_head.layers(pooled), target, calls["mask_classes"][0])


class RetinaNetTargets(SoftTargets):
    """Class scores and boxes of a RetinaNet's anchors."""

    def __init__(self, detector: RetinaNet) -> None:
        self.detector = detector
        self.anchors = _Anchors(detector.anchor_generator, detector.box2box_transform)

    def record(self) -> Modules:
        return {"head": (self.detector.head, select_output)}

    def losses(self, view: SubNetworkView) -> Losses:
        detector = self.detector
        sub = detector.head([view.features[f] for f in detector.head_in_features])
        pair, target_deltas = self.anchors.align(view.calls["head"][0], sub, view)
        # The moving average of positive anchors that normalises RetinaNet's own losses.
        positives = float(detector.loss_normalizer)
        loss, weights, normalizer = compare_focal(pair, positives, detector.focal_loss_gamma)
        boxes = soft.expected_box_l1(pair.deltas, target_deltas, weights, normalizer)
        return {"cls": loss, "box": boxes}


def _transform_boxes(boxes: list[Tensor], view: SubNetworkView) -> list[Boxes]:
    both = zip(boxes, view.sizes, strict=True)
    return [Boxes(view.transform.boxes(own, size)) for own, size in both]
