"""Soft targets of dense heads: RPN, RetinaNet, ATSS (anchors) and FCOS (points)."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.dense_heads import ATSSHead, FCOSHead, RetinaHead, RetinaSepBNHead, RPNHead
from mmdet.models.losses import FocalLoss
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.prior_generators import AnchorGenerator, MlvlPointGenerator
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
    compare_focal,
    compare_objectness,
    detach,
    require,
    select_output,
    unsupported,
)

POINT_CELL = 8.0
"""Side of the square that stands for a point of FCOS, in strides: objects of about that size are
assigned to the point's level (``regress_ranges`` of stride 8: up to 64 pixels from a point)."""


class AnchorGeometry:
    """Anchors and the deltas that are predicted for them."""

    def __init__(self, head: nn.Module) -> None:
        self.generator, self.coder = head.prior_generator, head.bbox_coder
        require(self.generator, AnchorGenerator, "the anchor generator")
        require(self.coder, DeltaXYWHBBoxCoder, "the box coder")
        self.strides = [tuple(map(float, stride)) for stride in self.generator.strides]
        # The generator has the offset in its base anchors already; a grid wants it apart.
        bases = self.generator.base_anchors
        centres = [(base[0, :2] + base[0, 2:]) / 2 for base in bases]
        self.cells = [b - c.repeat(2) for b, c in zip(bases, centres, strict=True)]
        offsets = {
            round(float(c[d]) / stride[d], 6)
            for c, stride in zip(centres, self.strides, strict=True)
            for d in (0, 1)
        }
        if len(offsets) > 1:
            raise unsupported("anchors whose centres are not at one offset in all cells")
        self.offset = offsets.pop()

    def grid(self, like: Tensor) -> AnchorGrid:
        """Returns the anchors in the tensor's dtype and on its device."""
        return AnchorGrid([cell.to(like) for cell in self.cells], self.strides, self.offset)

    def decode(self, priors: Tensor, raw: Tensor, _strides: Tensor) -> Tensor:
        """(A, 4) predictions -> (A, 4) XYXY boxes."""
        boxes = self.coder.decode(priors, raw)
        return getattr(boxes, "tensor", boxes)

    def encode(self, priors: Tensor, boxes: Tensor) -> Tensor:
        """(A, 4) XYXY boxes -> what should have been predicted for them."""
        return self.coder.encode(priors, boxes)


class PointGeometry:
    """Points and the distances to the four sides that are predicted for them (FCOS)."""

    def __init__(self, head: nn.Module) -> None:
        self.generator, self.in_strides = head.prior_generator, head.norm_on_bbox
        require(self.generator, MlvlPointGenerator, "the point generator")

    def grid(self, like: Tensor) -> AnchorGrid:
        """Returns squares around the points, so that levels can be matched by size."""
        strides = [tuple(map(float, stride)) for stride in self.generator.strides]
        half = POINT_CELL / 2
        cells = [like.new_tensor([[-half * x, -half * y, half * x, half * y]]) for x, y in strides]
        return AnchorGrid(cells, strides, float(self.generator.offset))

    def decode(self, priors: Tensor, raw: Tensor, strides: Tensor) -> Tensor:
        """(A, 4) distances, in strides or pixels -> (A, 4) XYXY boxes."""
        centres = (priors[:, :2] + priors[:, 2:]) / 2
        raw = raw * strides[:, None] if self.in_strides else raw
        return torch.cat([centres - raw[:, :2], centres + raw[:, 2:]], dim=1)


def _select_avg_factor(_args: tuple, kwargs: dict, _output: Any) -> Any:
    """Keeps what a loss was divided by."""
    return detach(kwargs.get("avg_factor", 1.0))


class DenseTargets(SoftTargets):
    """Class scores, boxes and centerness of a dense head.

    Args:
        head: an ``RPNHead``, ``RetinaHead``, ``ATSSHead`` or ``FCOSHead``.

    Raises:
        ConfigError: it is another one, or its parts are.
    """

    def __init__(self, head: nn.Module) -> None:
        require(head, (RPNHead, RetinaHead, RetinaSepBNHead, ATSSHead, FCOSHead), "the head")
        self.head = head
        self.geometry = PointGeometry(head) if type(head) is FCOSHead else AnchorGeometry(head)
        self.is_rpn = type(head) is RPNHead
        if not self.is_rpn:
            require(head.loss_cls, FocalLoss, "the class loss")
        elif not head.use_sigmoid_cls:
            raise unsupported("an RPN with softmax scores")
        # ATSS and FCOS compare boxes as such, the others compare what encodes them.
        self.on_boxes = type(head) is FCOSHead or head.reg_decoded_bbox

    def record(self) -> Modules:
        return {
            "dense": (self.head, select_output),
            "dense_cls_factor": (self.head.loss_cls, _select_avg_factor),
        }

    def losses(self, view: SubNetworkView) -> Losses:
        head = self.head
        pair = self.align(view.calls["dense"][0], head(view.features), view)
        # What the full pass's own loss was divided by: sampled anchors, or positive ones.
        factor = max(1.0, float((view.calls["dense_cls_factor"] or [1.0])[0]))
        if self.is_rpn:
            share = head.sampler.pos_fraction
            loss, weights, normalizer = compare_objectness(pair, factor, share)
        else:
            loss, weights, normalizer = compare_focal(pair, factor, head.loss_cls.gamma)
        losses = {"cls": loss * head.loss_cls.loss_weight}
        if pair.centerness is not None:
            distances = soft.bernoulli_kl(pair.centerness, pair.target_centerness)
            distance = (distances * weights).sum() / normalizer
            losses["centerness"] = distance * head.loss_centerness.loss_weight
            # The head's own box loss is weighted by centerness, too.
            weights = weights * soft.at_least_float32(pair.target_centerness).sigmoid()
            normalizer = weights.sum().clamp(min=factor)
        losses["box"] = self._box_loss(pair, weights, normalizer)
        return losses

    def align(self, full: HeadOutputs, sub: HeadOutputs, view: SubNetworkView) -> DensePair:
        """Returns the predictions of both passes for the same anchors."""
        grid = self.geometry.grid(soft.at_least_float32(full[1][0]))
        return align_dense(grid, self.geometry.decode, full, sub, view)

    def _box_loss(self, pair: DensePair, weights: Tensor, normalizer: Tensor) -> Tensor:
        loss, anchors, targets = self.head.loss_bbox, pair.anchors, pair.target_boxes
        if not self.on_boxes:
            target = torch.stack([self.geometry.encode(anchors, boxes) for boxes in targets])
            distance = soft.expected_box_l1(pair.deltas, target, weights, normalizer)
            return loss.loss_weight * distance
        boxes = torch.cat(
            [self.geometry.decode(anchors, raw.to(anchors), pair.strides) for raw in pair.deltas]
        )
        return loss(boxes, targets.flatten(0, 1), weight=weights.flatten(), avg_factor=normalizer)
