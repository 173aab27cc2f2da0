"""The records of a benchmark, whichever framework its detectors come from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from gradaug_det.benchmark.changes import FGSM, Corruption
from gradaug_det.evaluation.coco import TASK_NAMES, Scoring
from gradaug_det.evaluation.coco_data import CocoData

Metrics = dict[str, dict[str, float]]
"""``{"bbox": {"AP": per cent, ...}, "segm": ...}`` as
:func:`gradaug_det.evaluation.coco.evaluate_coco` returns it; NaN where there is nothing to find."""


@dataclass(frozen=True)
class Cost:
    """The cost of one image in inference.

    Args:
        parameters: weights that the network of this width uses.
        gflops: multiply-adds of the forward pass in 10^9 (one multiply-add is one), mean over the
            images measured; None if not measured.
        milliseconds: median duration of an image, preprocessing excluded; None if not measured.
        peak_megabytes: most memory that inference of an image took beyond the loaded model, in
            10^6 bytes; None where nobody can tell.
    """

    parameters: int
    gflops: float | None = None
    milliseconds: float | None = None
    peak_megabytes: float | None = None


def relative_performance(mpc: float | None, clean: float | None) -> float | None:
    """Relative performance under corruption (rPC), mPC over clean AP, in per cent.

    None without one of them, or if the clean AP is 0. Source: Michaelis et al., Benchmarking
    Robustness in Object Detection, 2019, equation 2.
    """
    return 100 * mpc / clean if mpc is not None and clean else None


@dataclass
class WidthResult:
    """A detector at one width. AP is in per cent, and None where there is no number.

    Args:
        width: width multiplier; 1 is the full network.
        metrics: on the clean images.
        predictions: COCO results on the clean images.
        cost: of an image; None until it is measured.
        corruptions: corruption -> severity (1 to 5) -> task -> AP.
        fgsm: epsilon (on the 0-255 scale) -> task -> AP.
        matched: whether its norms' statistics were matched to the full network's.
    """

    width: float
    metrics: Metrics
    predictions: list[dict]
    cost: Cost | None = None
    corruptions: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    fgsm: dict[float, dict[str, float]] = field(default_factory=dict)
    matched: bool = False

    @property
    def name(self) -> str:
        return f"{self.width:g}, matched" if self.matched else f"{self.width:g}"

    def add(self, change: Corruption | FGSM, aps: dict[str, float]) -> None:
        """Notes each task's AP on images that were changed."""
        if isinstance(change, Corruption):
            self.corruptions.setdefault(change.kind, {})[change.severity] = aps
        else:
            self.fgsm[change.epsilon] = aps

    def metric(self, task: str, name: str = "AP") -> float | None:
        value = self.metrics[task].get(name)
        return value if value is not None and math.isfinite(value) else None

    def mpc(self, task: str) -> float | None:
        """Mean performance under corruption: AP over all corruptions and severities measured.

        Source: Michaelis et al., Benchmarking Robustness in Object Detection, 2019, equation 1.
        """
        return _means({"all": self._corrupted_aps()}, task).get("all")

    def rpc(self, task: str) -> float | None:
        """:func:`relative_performance` of this width."""
        return relative_performance(self.mpc(task), self.metric(task))

    def ap_by_severity(self, task: str) -> dict[int, float]:
        """Severity -> AP, mean over the corruptions that have it."""
        severities = sorted({s for found in self.corruptions.values() for s in found})
        return _means({severity: self._corrupted_aps(severity) for severity in severities}, task)

    def ap_by_corruption(self, task: str) -> dict[str, float]:
        """Corruption -> AP, mean over its severities."""
        return _means(
            {kind: list(found.values()) for kind, found in self.corruptions.items()}, task
        )

    def ap_by_epsilon(self, task: str) -> dict[float, float]:
        """Epsilon of FGSM, of 255 -> AP, by rising epsilon."""
        return _means({epsilon: [aps] for epsilon, aps in sorted(self.fgsm.items())}, task)

    def _corrupted_aps(self, severity: int | None = None) -> list[dict[str, float]]:
        return [
            aps
            for found in self.corruptions.values()
            for own, aps in found.items()
            if severity in (None, own)
        ]


@dataclass
class DetectorResult:
    """A detector: a config with weights.

    Args:
        label: for readers; each detector of a report has its own.
        framework: ``Detectron2`` or ``MMDetection``.
        config: file name of the config.
        weights: as given, a path shortened to its last two parts.
        widths: at least one.
        scoring: with which settings of its config it was scored.
    """

    label: str
    framework: str
    config: str
    weights: str
    widths: Sequence[WidthResult]
    scoring: Scoring = field(default_factory=Scoring)

    @property
    def widest(self) -> WidthResult:
        return max(self.widths, key=lambda result: result.width)

    @property
    def tasks(self) -> list[str]:
        """``bbox`` and, if the detector gives masks, ``segm``, if keypoints, ``keypoints``.

        A width at which a detector of boxes finds nothing may have been scored on (no) masks too,
        so a task counts only if all widths have it.
        """
        return [t for t in TASK_NAMES if all(t in result.metrics for result in self.widths)]


@dataclass
class Benchmark:
    """All that a report shows.

    Args:
        title: heading.
        detectors: at least one, each with a label of its own; the others are compared with the
            first.
        data: the ground truth, with its name for readers; without a folder of images, the report
            has no pictures.
        image_ids: the images that were evaluated.
        environment: from :func:`gradaug_det.utils.environment.describe_environment`.
        command: that made it, as one can type it.
        num_pictures: best and worst images to show, of each.
        score_threshold: detections scoring less are not drawn.
    """

    title: str
    detectors: Sequence[DetectorResult]
    data: CocoData
    image_ids: Sequence[int]
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    num_pictures: int = 3
    score_threshold: float = 0.5

    @property
    def tasks(self) -> list[str]:
        """The tasks that any detector has, in COCO's order."""
        return [t for t in TASK_NAMES if any(t in detector.tasks for detector in self.detectors)]

    def time_ratio(self, result: WidthResult) -> float | None:
        """Duration of an image as a multiple of the first detector's at its largest width."""
        own, reference = (r.cost.milliseconds for r in (result, self.detectors[0].widest))
        return own / reference if own is not None and reference else None


def _means(groups: Mapping[Any, Iterable[dict[str, float]]], task: str) -> dict[Any, float]:
    # Mean AP of each group that has one: where there is no object to find, AP is NaN.
    means = {}
    for key, group in groups.items():
        known = [aps[task] for aps in group if math.isfinite(aps.get(task, math.nan))]
        if known:
            means[key] = fmean(known)
    return means
