"""What a benchmark's records say, with None where there is no number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

import numpy as np

from gradaug_det.benchmark.records import Benchmark, DetectorResult, WidthResult
from gradaug_det.evaluation.coco import TASK_NAMES, Scoring, run_evaluator

PrecisionCurves = dict[float, list[tuple[float, float]]]
"""IoU -> (recall, precision) in per cent by rising recall; empty where there is no object."""


def finite(value: float | None) -> float | None:
    """The value, None if it is NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None


def tasks_of(detector: DetectorResult) -> list[str]:
    """``bbox`` and, if the detector gives masks, ``segm``, if keypoints, ``keypoints``.

    A width at which a detector of boxes finds nothing may have been scored on (no) masks too, so a
    task counts only if all widths have it.
    """
    return [t for t in TASK_NAMES if all(t in result.metrics for result in detector.widths)]


def widest(detector: DetectorResult) -> WidthResult:
    """The detector at its largest width."""
    return max(detector.widths, key=lambda result: result.width)


def clean_ap(result: WidthResult, task: str) -> float | None:
    """AP on the clean images in per cent."""
    return finite(result.metrics[task].get("AP"))


def time_ratio(benchmark: Benchmark, result: WidthResult) -> float | None:
    """Duration of an image as a multiple of the first detector's at its largest width."""
    reference = widest(benchmark.detectors[0]).cost.milliseconds
    own = result.cost.milliseconds
    return own / reference if own is not None and reference else None


def ap_by_severity(result: WidthResult, task: str) -> dict[int, float]:
    """Severity -> AP in per cent, mean over the corruptions that have it."""
    severities = sorted({s for found in result.corruptions.values() for s in found})
    means = {
        severity: _mean(
            found[severity].get(task) for found in result.corruptions.values() if severity in found
        )
        for severity in severities
    }
    return {severity: mean for severity, mean in means.items() if mean is not None}


def ap_by_corruption(result: WidthResult, task: str) -> dict[str, float]:
    """Corruption -> AP in per cent, mean over its severities."""
    means = {
        kind: _mean(found.get(task) for found in severities.values())
        for kind, severities in result.corruptions.items()
    }
    return {kind: mean for kind, mean in means.items() if mean is not None}


def ap_by_epsilon(result: WidthResult, task: str) -> dict[float, float]:
    """Epsilon of FGSM, of 255 -> AP in per cent, by rising epsilon."""
    found = {epsilon: finite(aps.get(task)) for epsilon, aps in sorted(result.fgsm.items())}
    return {epsilon: ap for epsilon, ap in found.items() if ap is not None}


def precision_curves(
    ground_truth: dict,
    predictions: Sequence[dict],
    task: str,
    image_ids: Sequence[int] | None = None,
    scoring: Scoring | None = None,
) -> PrecisionCurves:
    """COCO's 101 points at IoU 0.5 and 0.75, mean over the categories that have objects.

    Raises:
        DataError: predictions that cannot be scored.
    """
    scoring = scoring or Scoring()
    evaluator = run_evaluator(
        ground_truth,
        predictions,
        task,
        image_ids=image_ids,
        max_detections=scoring.max_detections,
        sigmas=scoring.sigmas,
    )
    precision = evaluator.eval["precision"][..., 0, -1]  # (IoU, recall, category)
    existing = (precision > -1).all(axis=(0, 1))
    recall = (100 * np.asarray(evaluator.params.recThrs)).tolist()
    curves: PrecisionCurves = {0.5: [], 0.75: []}
    if existing.any():
        for iou in curves:
            row = int(np.flatnonzero(np.isclose(evaluator.params.iouThrs, iou))[0])
            mean = 100 * precision[row][:, existing].mean(axis=1)
            curves[iou] = list(zip(recall, mean.tolist(), strict=True))
    return curves


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if finite(value) is not None]
    return fmean(known) if known else None
