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
from gradaug_det.core.recording import Modules
from gradaug_det.core.regularizer import Losses
from gradaug_det.core.transforms import BatchTransform, Size
from gradaug_det.errors import ConfigError

POINT_CELL = 8.0
"""Side of the square that stands for a point of FCOS, in strides: objects of about that size are
assigned to the point's level (``regress_ranges`` of stride 8: up to 64 pixels from a point)."""


def unsupported(what: str) -> ConfigError:
    """The error for a detector without soft targets."""
    return ConfigError(
        "supervision",
        f"cannot be 'soft' or 'both': soft targets are not implemented for {what}; use 'labels'",
    )


def require(module: Any, kinds: type | tuple[type, ...], what: str) -> None:
    """Raises unless the module is exactly of one of the kinds: a subclass may mean other things."""
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if type(module) not in kinds:
        raise unsupported(f"{what} {type(module).__name__}")


def detached(value: Any) -> Any:
    """The tensors of (nested) lists and tuples, detached; other things as they are."""
    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, (list, tuple)):
        return [detached(v) for v in value]
    return value


def output(_args: tuple, _kwargs: dict, result: Any) -> Any:
    """Selects a call's output."""
    return detached(result)


def avg_factor(_args: tuple, kwargs: dict, _result: Any) -> Any:
    """Selects what a loss was divided by."""
    return detached(kwargs.get("avg_factor", 1.0))


class AnchorGeometry:
    """Anchors and the deltas that are predicted for them."""

    def __init__(self, head: nn.Module) -> None:
        self.generator, self.coder = head.prior_generator, head.bbox_coder
        require(self.generator, AnchorGenerator, "the anchor generator")
        require(self.coder, DeltaXYWHBBoxCoder, "the box coder")
        self.strides = [tuple(map(float, stride)) for stride in self.generator.strides]
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
        """The anchors in the tensor's dtype and on its device."""
        return AnchorGrid([cell.to(like) for cell in self.cells], self.strides, self.offset)

    def decode(self, priors: Tensor, raw: Tensor, _strides: Tensor) -> Tensor:
        """(A, 4) predictions -> (A, 4) XYXY boxes."""
        return _plain(self.coder.decode(priors, raw))

    def encode(self, priors: Tensor, boxes: Tensor) -> Tensor:
        """(A, 4) XYXY boxes -> what should have been predicted for them."""
        return self.coder.encode(priors, boxes)


class PointGeometry:
    """Points and the distances to the four sides that are predicted for them (FCOS)."""

    def __init__(self, head: nn.Module) -> None:
        self.generator, self.in_strides = head.prior_generator, head.norm_on_bbox
        require(self.generator, MlvlPointGenerator, "the point generator")

    def grid(self, like: Tensor) -> AnchorGrid:
        """Squares around the points, so that levels can be matched by size."""
        strides = [tuple(map(float, stride)) for stride in self.generator.strides]
        half = POINT_CELL / 2
        cells = [like.new_tensor([[-half * x, -half * y, half * x, half * y]]) for x, y in strides]
        return AnchorGrid(cells, strides, float(self.generator.offset))

    def decode(self, priors: Tensor, raw: Tensor, strides: Tensor) -> Tensor:
        """(A, 4) distances, in strides or pixels -> (A, 4) XYXY boxes."""
        centres = (priors[:, :2] + priors[:, 2:]) / 2
        raw = raw * strides[:, None] if self.in_strides else raw
        return torch.cat([centres - raw[:, :2], centres + raw[:, 2:]], dim=1)


def _plain(boxes: Any) -> Tensor:
    return getattr(boxes, "tensor", boxes)


class DenseTargets:
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
            "dense": (self.head, output),
            "dense_cls_factor": (self.head.loss_cls, avg_factor),
        }

    def losses(
        self, features: Any, calls: dict[str, list], transform: BatchTransform, sizes: list[Size]
    ) -> Losses:
        """See :class:`gradaug_det.mmdet.soft_targets.SoftTargets`."""
        head = self.head
        sub = head(features)
        pair = self._align(calls["dense"][0], sub, transform, sizes)
        logits, target, valid = pair["logits"], pair["target_logits"], pair["valid"]
        # What the full pass's own loss was divided by: sampled anchors, or positive ones.
        factor = max(1.0, float((calls["dense_cls_factor"] or [1.0])[0]))
        losses: Losses = {}
        if self.is_rpn:
            objectness = soft.unsampled_logits(target[..., 0], valid, factor)
            weights = soft.confidence(objectness) * valid
            losses["cls"] = soft.objectness_kl(
                logits[..., 0], target[..., 0], valid, factor, head.sampler.pos_fraction
            )
            normalizer = weights.sum().clamp(min=factor)
        else:
            gamma = head.loss_cls.gamma
            # Focal weights: at its prior of 0.01 a thousand background anchors count as one object.
            weights = soft.at_least_float32(target).sigmoid().amax(dim=-1).pow(gamma) * valid
            normalizer = weights.sum().clamp(min=factor)
            losses["cls"] = soft.quality_focal(logits, target, valid, normalizer, gamma)
        losses["cls"] = losses["cls"] * head.loss_cls.loss_weight
        if "centerness" in pair:
            ours, theirs = pair["centerness"], pair["target_centerness"]
            difference = (soft.bernoulli_kl(ours, theirs) * weights).sum() / normalizer
            losses["centerness"] = difference * head.loss_centerness.loss_weight
            weights = (
                weights * soft.at_least_float32(theirs).sigmoid()
            )  # as in the head's own box loss
            normalizer = weights.sum().clamp(min=factor)
        losses["box"] = self._box_loss(pair, weights, normalizer)
        return losses

    def _box_loss(self, pair: dict[str, Tensor], weights: Tensor, normalizer: Tensor) -> Tensor:
        head, priors, strides = self.head, pair["priors"], pair["strides"]
        raw, boxes = pair["raw"], pair["target_boxes"]
        if self.on_boxes:
            ours = torch.cat([self.geometry.decode(priors, r.to(priors), strides) for r in raw])
            return head.loss_bbox(
                ours, boxes.flatten(0, 1), weight=weights.flatten(), avg_factor=normalizer
            )
        target = torch.stack([self.geometry.encode(priors, b) for b in boxes])
        return head.loss_bbox.loss_weight * soft.expected_box_l1(raw, target, weights, normalizer)

    def _align(
        self, full: list, sub: Any, transform: BatchTransform, sizes: list[Size]
    ) -> dict[str, Tensor]:
        """Predictions of both passes for the sub-network's priors.

        Args:
            full, sub: per level (N, A * K, Hi, Wi) logits, (N, A * 4, Hi, Wi) encoded boxes, and
                perhaps (N, A, Hi, Wi) centerness logits.

        Returns:
            ``priors`` (A', 4) and their ``strides`` (A',); ``logits`` and ``target_logits``
            (N, A', K); ``raw``, the sub-network's encoded boxes, and ``target_boxes`` (N, A', 4)
            XYXY in the transformed image; ``valid`` (N, A'); perhaps ``centerness`` and
            ``target_centerness`` (N, A').
        """
        full_shapes, sub_shapes = ([tuple(s.shape[-2:]) for s in outs[0]] for outs in (full, sub))
        like = soft.at_least_float32(full[1][0])
        grid = self.geometry.grid(like)
        priors, full_priors = grid.anchors(sub_shapes), grid.anchors(full_shapes)
        full_flat, sub_flat = (self._flatten(outs) for outs in (full, sub))
        full_strides = _strides(grid, full_shapes)
        targets: list[list[Tensor]] = [[], [], [], []]
        for image, size in enumerate(sizes):
            index, valid = grid.match(transform, size, full_shapes, sub_shapes)
            raw = full_flat[1][image, index].to(like.dtype)
            boxes = self.geometry.decode(full_priors[index], raw, full_strides[index])
            boxes = transform.boxes(boxes, size)
            # An untrained network may predict boxes of no width, which nothing encodes.
            good = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & boxes.isfinite().all(dim=1)
            targets[0].append(full_flat[0][image, index])
            targets[1].append(boxes.where(good[:, None], priors))
            targets[2].append(valid & good)
            if len(full_flat) == 3:
                targets[3].append(full_flat[2][image, index, 0])
        pair = {
            "priors": priors,
            "strides": _strides(grid, sub_shapes),
            "logits": sub_flat[0],
            "raw": sub_flat[1],
            "target_logits": torch.stack(targets[0]),
            "target_boxes": torch.stack(targets[1]),
            "valid": torch.stack(targets[2]),
        }
        if len(sub_flat) == 3:
            pair["centerness"] = sub_flat[2][..., 0]
            pair["target_centerness"] = torch.stack(targets[3])
        return pair

    def _flatten(self, outs: Any) -> list[Tensor]:
        """Per output (N, A', K) in order of level, row, column, cell anchor."""
        columns = (self.head.cls_out_channels, 4, 1)
        return [
            torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, k) for x in levels], dim=1)
            for levels, k in zip(outs, columns, strict=False)
        ]


def _strides(grid: AnchorGrid, shapes: list[Size]) -> Tensor:
    """(A',) horizontal stride of each prior's level, in pixels."""
    counts = [h * w * len(cell) for (h, w), cell in zip(shapes, grid.cells, strict=True)]
    strides = grid.cells[0].new_tensor([stride[0] for stride in grid.strides])
    return strides.repeat_interleave(torch.tensor(counts, device=strides.device))
