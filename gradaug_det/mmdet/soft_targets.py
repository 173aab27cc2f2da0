"""Soft targets of MMDetection's detectors; see :mod:`gradaug_det.core.soft_targets`."""

from __future__ import annotations

from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from torch import nn

from gradaug_det.core.soft_targets import SoftTargets, unsupported
from gradaug_det.mmdet.soft_targets_dense import DenseTargets
from gradaug_det.mmdet.soft_targets_two_stage import TwoStageTargets


def soft_targets(detector: nn.Module) -> SoftTargets:
    """Returns the soft targets of a detector.

    Raises:
        ConfigError: they are not implemented for this detector; ``labels`` works with any.
    """
    # A detector that computes its losses in another way has other outputs to be taught.
    if isinstance(detector, TwoStageDetector) and type(detector).loss is TwoStageDetector.loss:
        return TwoStageTargets(detector)
    single = isinstance(detector, SingleStageDetector)
    if single and type(detector).loss is SingleStageDetector.loss:
        return DenseTargets(detector.bbox_head)
    raise unsupported(type(detector).__name__)
