"""Soft targets of MMDetection's detectors, taken from the full pass that training ran anyway.

``record`` says which modules' calls to note in that pass; ``losses`` runs the same heads over a
sub-network's features, on the same proposals moved by the sub-network's transform.

Source: GradAug, Algorithm 1, carried over to detectors (equation 3 for the class distribution).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from mmdet.models.detectors import SingleStageDetector, TwoStageDetector
from torch import Tensor, nn

from gradaug_det.core.recording import Modules
from gradaug_det.core.regularizer import Losses
from gradaug_det.core.transforms import BatchTransform, Size
from gradaug_det.mmdet.soft_targets_dense import DenseTargets, unsupported
from gradaug_det.mmdet.soft_targets_two_stage import TwoStageTargets

Calls = dict[str, list[Any]]
Features = Sequence[Tensor]


class SoftTargets(Protocol):
    """What the hook needs to know about a kind of detector."""

    def record(self) -> Modules:
        """Modules to note in the full pass; see ForwardRecorder."""

    def losses(
        self, features: Features, calls: Calls, transform: BatchTransform, sizes: list[Size]
    ) -> Losses:
        """Losses of a sub-network's features against what was noted.

        Args:
            features: what ``extract_feat`` returns for the transformed batch.
            calls: what was noted in the full pass.
            transform: what was done to the batch.
            sizes: (height, width) of each image before it.
        """


def soft_targets(detector: nn.Module) -> SoftTargets:
    """The soft targets of a detector.

    Raises:
        ConfigError: they are not implemented for this detector; ``labels`` works with any.
    """
    # A detector that computes its losses in another way has other outputs to be taught.
    if isinstance(detector, TwoStageDetector) and type(detector).loss is TwoStageDetector.loss:
        return TwoStageTargets(detector)
    if (
        isinstance(detector, SingleStageDetector)
        and type(detector).loss is SingleStageDetector.loss
    ):
        return DenseTargets(detector.bbox_head)
    raise unsupported(type(detector).__name__)
