"""Soft targets of Faster, Mask and Cascade R-CNN: RPN, box head(s) and mask head(s)."""

from __future__ import annotations

from mmdet.models.detectors import TwoStageDetector
from mmdet.models.losses import CrossEntropyLoss
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import (
    BBoxHead,
    ConvFCBBoxHead,
    Shared2FCBBoxHead,
    Shared4Conv1FCBBoxHead,
)
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torch import Tensor, nn

from gradaug_det.core import losses as soft
from gradaug_det.core.regularizer import Losses
from gradaug_det.core.soft_targets import (
    Modules,
    SoftTargets,
    SubNetworkView,
    compare_box_head,
    require,
    select_argument,
    select_output,
    unsupported,
)
from gradaug_det.mmdet.mask_head import SmallInitMaskHead
from gradaug_det.mmdet.soft_targets_dense import DenseTargets

_MASK_HEADS = (FCNMaskHead, SmallInitMaskHead)
_BOX_HEADS = (BBoxHead, ConvFCBBoxHead, Shared2FCBBoxHead, Shared4Conv1FCBBoxHead)


class TwoStageTargets(SoftTargets):
    """Predictions of a two-stage detector's heads for the proposals that it sampled.

    Raises:
        ConfigError: a head is of a kind that has no soft targets.
    """

    def __init__(self, detector: TwoStageDetector) -> None:
        heads = detector.roi_head
        require(heads, (StandardRoIHead, CascadeRoIHead), "the RoI head")
        self.heads, self.cascade = heads, type(heads) is CascadeRoIHead
        self.rpn = DenseTargets(detector.rpn_head) if detector.with_rpn else None
        self.stages = heads.num_stages if self.cascade else 1
        for stage in range(self.stages):
            _check_box_head(self._stage(heads.bbox_head, stage))
            if heads.with_mask:
                require(self._stage(heads.mask_head, stage), _MASK_HEADS, "the mask head")
        if heads.with_mask and heads.share_roi_extractor:
            raise unsupported("a mask head that shares the box head's RoI extractor")

    def _stage(self, module: nn.Module, stage: int) -> nn.Module:
        return module[stage] if self.cascade else module

    def record(self) -> Modules:
        heads = self.heads
        modules = dict(self.rpn.record()) if self.rpn else {}
        for stage in range(self.stages):
            # An extractor takes (R, 5) rois: index of the image, and XYXY box.
            modules[f"rois{stage}"] = (
                self._stage(heads.bbox_roi_extractor, stage),
                select_argument(1),
            )
            modules[f"box{stage}"] = (self._stage(heads.bbox_head, stage), select_output)
            if heads.with_mask:
                mask_head = self._stage(heads.mask_head, stage)
                extractor = self._stage(heads.mask_roi_extractor, stage)
                modules[f"mask_rois{stage}"] = (extractor, select_argument(1))
                modules[f"mask{stage}"] = (mask_head, select_output)
                modules[f"mask_classes{stage}"] = (mask_head.loss_mask, select_argument(2))
        return modules

    def losses(self, view: SubNetworkView) -> Losses:
        losses: Losses = {}
        if self.rpn:
            own = self.rpn.losses(view)
            losses |= {f"rpn_{name}": loss for name, loss in own.items()}
        for stage in range(self.stages):
            # Cascade R-CNN stops early when a stage leaves no proposal.
            if view.calls[f"rois{stage}"]:
                own = self._stage_losses(stage, view)
                prefix = f"s{stage}." if self.cascade else ""
                losses |= {prefix + name: loss for name, loss in own.items()}
        return losses

    def _stage_losses(self, stage: int, view: SubNetworkView) -> Losses:
        heads, calls = self.heads, view.calls
        first = (stage,) if self.cascade else ()
        box_head = self._stage(heads.bbox_head, stage)
        rois = _transform_rois(calls[f"rois{stage}"][0], view)
        sub = heads._bbox_forward(*first, view.features, rois)
        sub = (sub["cls_score"], sub["bbox_pred"])
        losses = compare_box_head(sub, calls[f"box{stage}"][0], view.transform)
        # The loss weights of a config apply to soft losses as they do to the detector's own.
        factors = {"cls": box_head.loss_cls.loss_weight, "box": box_head.loss_bbox.loss_weight}
        if heads.with_mask and calls[f"mask_classes{stage}"]:
            rois = _transform_rois(calls[f"mask_rois{stage}"][0], view)
            logits = heads._mask_forward(*first, view.features, rois)["mask_preds"]
            target = view.transform.box_crops(calls[f"mask{stage}"][0])
            losses["mask"] = soft.mask_kl(logits, target, calls[f"mask_classes{stage}"][0])
            factors["mask"] = self._stage(heads.mask_head, stage).loss_mask.loss_weight
        of_stage = heads.stage_loss_weights[stage] if self.cascade else 1.0
        return {name: of_stage * factors[name] * loss for name, loss in losses.items()}


def _check_box_head(head: nn.Module) -> None:
    require(head, _BOX_HEADS, "the box head")
    require(head.loss_cls, CrossEntropyLoss, "the class loss")
    require(head.bbox_coder, DeltaXYWHBBoxCoder, "the box coder")
    if head.loss_cls.use_sigmoid or not (head.with_cls and head.with_reg):
        raise unsupported("a box head without softmax scores and box deltas")
    if head.bbox_coder.means[0] != 0:
        raise unsupported("box deltas whose mean moves sideways (target_means[0] is not 0)")


def _transform_rois(rois: Tensor, view: SubNetworkView) -> Tensor:
    """(R, 5) image index and XYXY box, moved into the transformed images."""
    new = rois.clone()
    for image, size in enumerate(view.sizes):
        here = rois[:, 0] == image
        new[here, 1:] = view.transform.boxes(rois[here, 1:], size)
    return new
