"""Soft targets of Detectron2's detectors, taken from the full pass that training ran anyway.

``record`` says which modules' outputs to note in that pass; ``losses`` runs the same heads over a
sub-network's features, on the same proposals moved by the sub-network's transform.

Source: GradAug, Algorithm 1, carried over to detectors (equation 3 for the class distribution).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from detectron2.modeling import GeneralizedRCNN, PanopticFPN, RetinaNet
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers, StandardROIHeads
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from gradaug_det.core import losses as soft
from gradaug_det.core.anchors import AnchorGrid
from gradaug_det.core.recording import Modules
from gradaug_det.core.regularizer import Losses
from gradaug_det.core.transforms import BatchTransform, Size
from gradaug_det.errors import ConfigError

Calls = dict[str, list[Any]]
Features = dict[str, Tensor]


class SoftTargets(Protocol):
    """What the hook needs to know about a kind of detector."""

    def record(self) -> Modules:
        """Modules to note in the full pass; see ForwardRecorder."""

    def losses(
        self, features: Features, calls: Calls, transform: BatchTransform, sizes: list[Size]
    ) -> Losses:
        """Losses of a sub-network's features against what was noted.

        Args:
            features: the backbone's output for the transformed batch.
            calls: what was noted in the full pass.
            transform: what was done to the batch.
            sizes: (height, width) of each image before it.
        """


def soft_targets(detector: nn.Module) -> SoftTargets:
    """The soft targets of a detector.

    Raises:
        ConfigError: they are not implemented for this detector; ``labels`` works with any.
    """
    if isinstance(detector, RetinaNet):
        return RetinaNetTargets(detector)
    if isinstance(detector, GeneralizedRCNN) and not isinstance(detector, PanopticFPN):
        return RCNNTargets(detector)
    raise _unsupported(type(detector).__name__)


def _unsupported(what: str) -> ConfigError:
    return ConfigError(
        "supervision",
        "(GRADAUG.SUPERVISION) cannot be 'soft' or 'both': soft targets are not implemented for "
        f"{what}; use 'labels'",
    )


def _require(module: Any, kind: type, what: str, exact: bool = False) -> None:
    if not (type(module) is kind if exact else isinstance(module, kind)):
        raise _unsupported(f"{what} {type(module).__name__}")


def _detach(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach()
    return type(value)(_detach(v) for v in value)


def _output(_args: tuple, _kwargs: dict, output: Any) -> Any:
    return _detach(output)


def _boxes(args: tuple, _kwargs: dict, _output: Any) -> list[Tensor]:
    """Of an ROIPooler's call: the boxes of each image."""
    return [boxes.tensor.detach() for boxes in args[1]]


class _DenseTargets:
    """Matching of anchors between the full and the sub-network's pass, for RPN and RetinaNet."""

    def __init__(self, generator: nn.Module, coder: Box2BoxTransform) -> None:
        _require(coder, Box2BoxTransform, "the box coder")
        _require(generator, DefaultAnchorGenerator, "the anchor generator")
        self.generator, self.coder = generator, coder

    def grid(self) -> AnchorGrid:
        """The anchors; read anew each time, since a model may move to another device."""
        strides = [(float(s), float(s)) for s in self.generator.strides]
        return AnchorGrid(list(self.generator.cell_anchors), strides, self.generator.offset)

    def align(
        self,
        full: tuple[list[Tensor], list[Tensor]],
        sub: tuple[list[Tensor], list[Tensor]],
        num_scores: int,
        transform: BatchTransform,
        sizes: list[Size],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Predictions of both passes for the sub-network's anchors.

        Args:
            full, sub: per level (N, A * num_scores, Hi, Wi) logits, (N, A * 4, Hi, Wi) deltas.

        Returns:
            logits, target_logits (N, A', num_scores); deltas, target_deltas (N, A', 4); valid
            (N, A').
        """
        full_shapes, sub_shapes = (
            [tuple(level.shape[-2:]) for level in logits] for logits, _ in (full, sub)
        )
        full_logits, sub_logits = (
            torch.cat([permute_to_N_HWA_K(level, num_scores) for level in logits], dim=1)
            for logits, _ in (full, sub)
        )
        full_deltas, sub_deltas = (
            torch.cat([permute_to_N_HWA_K(level, 4) for level in deltas], dim=1)
            for _, deltas in (full, sub)
        )
        grid = self.grid()
        full_anchors, sub_anchors = grid.anchors(full_shapes), grid.anchors(sub_shapes)
        target_logits, target_deltas, valids = [], [], []
        for image, size in enumerate(sizes):
            index, valid = grid.match(transform, size, full_shapes, sub_shapes)
            boxes = self.coder.apply_deltas(
                full_deltas[image, index].to(full_anchors.dtype), full_anchors[index]
            )
            moved = self.coder.get_deltas(sub_anchors, transform.boxes(boxes, size))
            # An untrained network may predict boxes of no width, whose deltas are infinite.
            finite = moved.isfinite().all(dim=1)
            target_deltas.append(moved.where(finite[:, None], torch.zeros_like(moved)))
            target_logits.append(full_logits[image, index])
            valids.append(valid & finite)
        return (
            sub_logits,
            torch.stack(target_logits),
            sub_deltas,
            torch.stack(target_deltas),
            torch.stack(valids),
        )


class RCNNTargets:
    """RPN, box head(s) and mask head of a Faster, Mask or Cascade R-CNN with FPN."""

    def __init__(self, detector: GeneralizedRCNN) -> None:
        self.rpn, self.heads = detector.proposal_generator, detector.roi_heads
        _require(self.rpn, RPN, "the proposal generator", exact=True)
        self.cascade = isinstance(self.heads, CascadeROIHeads)
        kind = CascadeROIHeads if self.cascade else StandardROIHeads
        _require(self.heads, kind, "the ROI heads", exact=True)
        self.predictors = list(self.heads.box_predictor) if self.cascade else []
        self.predictors = self.predictors or [self.heads.box_predictor]
        for predictor in self.predictors:
            _require(predictor, FastRCNNOutputLayers, "the box predictor", exact=True)
        if self.heads.mask_on:
            _require(self.heads.mask_head, MaskRCNNConvUpsampleHead, "the mask head", exact=True)
        if self.heads.keypoint_on:
            raise _unsupported("keypoint heads")
        self.dense = _DenseTargets(self.rpn.anchor_generator, self.rpn.box2box_transform)

    def record(self) -> Modules:
        modules = {
            "rpn": (self.rpn.rpn_head, _output),
            "boxes": (self.heads.box_pooler, _boxes),
        }
        for stage, predictor in enumerate(self.predictors):
            modules[f"box{stage}"] = (predictor, _output)
        if self.heads.mask_on:
            modules["mask_boxes"] = (self.heads.mask_pooler, _boxes)
            modules["mask_classes"] = (self.heads.mask_head, _classes)
            modules["masks"] = (self.heads.mask_head.predictor, _output)
        return modules

    def losses(
        self, features: Features, calls: Calls, transform: BatchTransform, sizes: list[Size]
    ) -> Losses:
        losses = self._rpn_losses(features, calls["rpn"][0], transform, sizes)
        for stage, boxes in enumerate(calls["boxes"]):
            target_logits, target_deltas = calls[f"box{stage}"][0]
            logits, deltas = self._box_stage(features, _moved(boxes, transform, sizes), stage)
            suffix = f"_stage{stage}" if self.cascade else ""
            losses[f"cls{suffix}"] = soft.class_kl(logits, target_logits)
            losses[f"box{suffix}"] = soft.class_box_l1(
                deltas, _mirrored(target_deltas, transform), target_logits
            )
        if self.heads.mask_on:
            losses["mask"] = self._mask_loss(features, calls, transform, sizes)
        return losses

    def _rpn_losses(
        self, features: Features, full: Any, transform: BatchTransform, sizes: list[Size]
    ) -> Losses:
        sub = self.rpn.rpn_head([features[f] for f in self.rpn.in_features])
        logits, target, deltas, target_deltas, valid = self.dense.align(
            full, sub, 1, transform, sizes
        )
        target = target[..., 0]
        normalizer = float(self.rpn.batch_size_per_image * len(sizes))
        weights = soft.confidence(soft.unsampled_logits(target, valid, normalizer)) * valid
        return {
            "rpn_cls": soft.objectness_kl(
                logits[..., 0], target, valid, normalizer, self.rpn.positive_fraction
            ),
            "rpn_loc": soft.expected_box_l1(
                deltas, target_deltas, weights, weights.sum().clamp(min=normalizer)
            ),
        }

    def _box_stage(
        self, features: Features, boxes: list[Boxes], stage: int
    ) -> tuple[Tensor, Tensor]:
        heads = self.heads
        levels = [features[f] for f in heads.box_in_features]
        if self.cascade:
            proposals = [Instances((0, 0), proposal_boxes=b) for b in boxes]
            return heads._run_stage(levels, proposals, stage)
        return heads.box_predictor(heads.box_head(heads.box_pooler(levels, boxes)))

    def _mask_loss(
        self, features: Features, calls: Calls, transform: BatchTransform, sizes: list[Size]
    ) -> Tensor:
        heads = self.heads
        boxes = _moved(calls["mask_boxes"][0], transform, sizes)
        pooled = heads.mask_pooler([features[f] for f in heads.mask_in_features], boxes)
        logits = heads.mask_head.layers(pooled)
        target = transform.box_crops(calls["masks"][0])
        return soft.mask_kl(logits, target, calls["mask_classes"][0])


class RetinaNetTargets:
    """Class scores and boxes of a RetinaNet's anchors."""

    def __init__(self, detector: RetinaNet) -> None:
        self.detector = detector
        self.dense = _DenseTargets(detector.anchor_generator, detector.box2box_transform)

    def record(self) -> Modules:
        return {"head": (self.detector.head, _output)}

    def losses(
        self, features: Features, calls: Calls, transform: BatchTransform, sizes: list[Size]
    ) -> Losses:
        detector = self.detector
        sub = detector.head([features[f] for f in detector.head_in_features])
        logits, target, deltas, target_deltas, valid = self.dense.align(
            calls["head"][0], sub, detector.num_classes, transform, sizes
        )
        gamma = detector.focal_loss_gamma
        # Focal weights: at its prior of 0.01 a thousand background anchors count as one object.
        weights = target.float().sigmoid().amax(dim=-1).pow(gamma) * valid
        # The moving average of positive anchors that normalises RetinaNet's own losses.
        normalizer = weights.sum().clamp(min=float(detector.loss_normalizer))
        return {
            "cls": soft.quality_focal(logits, target, valid, normalizer, gamma),
            "box": soft.expected_box_l1(deltas, target_deltas, weights, normalizer),
        }


def _classes(args: tuple, _kwargs: dict, _output: Any) -> Tensor:
    """Of a mask head's call in training: the classes of the foreground proposals."""
    return torch.cat([instances.gt_classes for instances in args[1]])


def _moved(boxes: list[Tensor], transform: BatchTransform, sizes: list[Size]) -> list[Boxes]:
    return [Boxes(transform.boxes(b, size)) for b, size in zip(boxes, sizes, strict=True)]


def _mirrored(deltas: Tensor, transform: BatchTransform) -> Tensor:
    # Not -1: of no proposals the number of classes cannot be told.
    return transform.deltas(deltas.unflatten(1, (deltas.shape[1] // 4, 4))).flatten(1)
