"""What a benchmark measured, independent of the framework."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from gradaug_det.benchmark.changes import FGSM, Corruption
from gradaug_det.errors import ConfigError
from gradaug_det.evaluation.coco import Scoring

Metrics = dict[str, dict[str, float]]
"""``{"bbox": {"AP": per cent, ...}, "segm": ...}`` as
:func:`gradaug_det.evaluation.coco.evaluate_coco` returns it; NaN where there is nothing to find."""


@dataclass(frozen=True)
class Cost:
    """What one image costs in inference.

    Args:
        parameters: weights that the network of this width uses.
        gflops: multiply-adds of the forward pass in 10^9 (fvcore counts one multiply-add as one),
            mean over the images measured; None if the network cannot be traced.
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
    """A detector at one width.

    Args:
        width: width multiplier; 1 is the full network.
        metrics: on the clean images.
        predictions: COCO results on the clean images (or the path of a JSON list of them).
        cost: of an image; None until it is measured.
        corruptions: corruption -> severity (1 to 5) -> task -> AP in per cent.
        fgsm: epsilon (on the 0-255 scale) -> task -> AP in per cent.
    """

    width: float
    metrics: Metrics
    predictions: Sequence[dict] | Path
    cost: Cost | None = None
    corruptions: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    fgsm: dict[float, dict[str, float]] = field(default_factory=dict)

    def add(self, change: Corruption | FGSM, aps: dict[str, float]) -> None:
        """Notes each task's AP in per cent on images that were changed."""
        if isinstance(change, Corruption):
            self.corruptions.setdefault(change.kind, {})[change.severity] = aps
        else:
            self.fgsm[change.epsilon] = aps

    def mpc(self, task: str) -> float | None:
        """Mean performance under corruption: AP over all corruptions and severities measured.

        None if none was. Source: Michaelis et al., Benchmarking Robustness in Object Detection,
        2019, equation 1.
        """
        values = [
            found[task]
            for severities in self.corruptions.values()
            for found in severities.values()
            if task in found
        ]
        return fmean(values) if values else None

    def rpc(self, task: str) -> float | None:
        """:func:`relative_performance` of this width."""
        return relative_performance(self.mpc(task), self.metrics.get(task, {}).get("AP"))


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


@dataclass
class Benchmark:
    """All that a report shows.

    Args:
        title: heading.
        detectors: the first is what the others are compared with.
        gt_json: COCO ground truth of the dataset.
        dataset: its name for readers.
        image_root: folder of its images; None leaves the pictures out.
        image_ids: the images that were evaluated; None for all of the ground truth's.
        environment: from :func:`gradaug_det.utils.environment.describe_environment`.
        command: that made it, as one can type it.
        num_pictures: best and worst images to show, of each.
        score_threshold: detections scoring less are not drawn.

    Raises:
        ConfigError: no detector, a label given twice, a detector without widths.
    """

    title: str
    detectors: Sequence[DetectorResult]
    gt_json: str | Path
    dataset: str
    image_root: str | Path | None = None
    image_ids: Sequence[int] | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    num_pictures: int = 3
    score_threshold: float = 0.5

    def __post_init__(self) -> None:
        labels = [detector.label for detector in self.detectors]
        if not labels:
            raise ConfigError("detectors", "is empty; a report needs at least one")
        if len(set(labels)) < len(labels):
            raise ConfigError("label", f"each detector needs its own; got {labels}")
        for detector in self.detectors:
            if not detector.widths:
                raise ConfigError("widths", f"is empty for the detector {detector.label!r}")
