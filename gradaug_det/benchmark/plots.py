"""Plots of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from gradaug_det.benchmark.records import Benchmark, DetectorResult, WidthResult
from gradaug_det.evaluation.coco import run_evaluator
from gradaug_det.evaluation.comparison import TASK_NAMES
from gradaug_det.evaluation.plots import METHOD_COLOURS, Plot, render_svg

DASHES = {"bbox": "-", "segm": "--"}


@dataclass
class _Line:
    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str
    style: str = "-"


def colour(position: int) -> str:
    """Of a detector by its place in the report."""
    return METHOD_COLOURS[position % len(METHOD_COLOURS)]


def tasks_of(detector: DetectorResult) -> list[str]:
    """``bbox`` and, if the detector gives masks, ``segm``."""
    return [task for task in TASK_NAMES if task in detector.widths[0].metrics]


def widest(detector: DetectorResult) -> WidthResult:
    """The detector at its largest width."""
    return max(detector.widths, key=lambda result: result.width)


def cost_plot(benchmark: Benchmark) -> Plot | None:
    """AP over multiply-adds, a line for each detector and task; None with fewer than 2 points."""
    lines = []
    for position, detector in enumerate(benchmark.detectors):
        results = [r for r in detector.widths if r.cost.gflops is not None]
        results.sort(key=lambda r: r.cost.gflops)
        for task in tasks_of(detector):
            lines.append(
                _Line(
                    f"{detector.label}, {TASK_NAMES[task]}",
                    [r.cost.gflops for r in results],
                    [r.metrics[task]["AP"] for r in results],
                    colour(position),
                    DASHES[task],
                )
            )
    if max((len(line.x) for line in lines), default=0) < 2 and len(benchmark.detectors) < 2:
        return None
    return _plot("AP and cost", "GFLOPs an image", "AP, %", lines, marker="o")


def recall_plots(benchmark: Benchmark, ground_truth: dict) -> list[Plot]:
    """Precision over recall, mean over categories, at IoU 0.5 and 0.75, of the largest widths."""
    plots = []
    for task in TASK_NAMES:
        lines = []
        for position, detector in enumerate(benchmark.detectors):
            if task not in tasks_of(detector):
                continue
            curves = precision_curves(
                ground_truth, widest(detector).predictions, task, benchmark.image_ids
            )
            for style, (iou, (recall, precision)) in zip("-:", curves.items(), strict=True):
                label = f"{detector.label}, IoU {iou:g}"
                lines.append(_Line(label, recall, precision, colour(position), style))
        if any(len(line.x) for line in lines):
            title = f"{TASK_NAMES[task].capitalize()} precision and recall"
            plots.append(_plot(title, "recall, %", "precision, %", lines))
    return plots


def precision_curves(
    ground_truth: dict,
    predictions: Sequence[dict],
    task: str,
    image_ids: Sequence[int] | None = None,
) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """IoU (0.5 and 0.75) -> recall and precision in per cent: COCO's 101 points, mean over the
    categories that have objects."""
    evaluator = run_evaluator(ground_truth, predictions, task, image_ids=image_ids)
    precision = evaluator.eval["precision"][..., 0, -1]  # (IoU, recall, category)
    existing = (precision > -1).all(axis=(0, 1))
    recall = 100 * np.asarray(evaluator.params.recThrs)
    curves = {}
    for iou in (0.5, 0.75):
        row = int(np.flatnonzero(np.isclose(evaluator.params.iouThrs, iou))[0])
        values = precision[row][:, existing]
        curves[iou] = (recall, 100 * values.mean(axis=1)) if existing.any() else ([], [])
    return curves


def corruption_plot(benchmark: Benchmark) -> Plot | None:
    """AP over severity, mean over the corruptions; 0 is clean."""
    lines = []
    for position, detector in enumerate(benchmark.detectors):
        result = widest(detector)
        for task in tasks_of(detector):
            by_severity = mean_by_severity(result.corruptions, task)
            if by_severity:
                lines.append(
                    _Line(
                        f"{detector.label}, {TASK_NAMES[task]}",
                        [0, *by_severity],
                        [result.metrics[task]["AP"], *by_severity.values()],
                        colour(position),
                        DASHES[task],
                    )
                )
    return _plot("Corrupted images", "severity (0: clean)", "AP, %", lines, marker="o")


def fgsm_plot(benchmark: Benchmark) -> Plot | None:
    """AP over FGSM's epsilon; 0 is clean."""
    lines = []
    for position, detector in enumerate(benchmark.detectors):
        result = widest(detector)
        for task in tasks_of(detector):
            points = sorted((e, found[task]) for e, found in result.fgsm.items() if task in found)
            if points:
                lines.append(
                    _Line(
                        f"{detector.label}, {TASK_NAMES[task]}",
                        [0, *(e for e, _ in points)],
                        [result.metrics[task]["AP"], *(ap for _, ap in points)],
                        colour(position),
                        DASHES[task],
                    )
                )
    return _plot("Attacked images (FGSM)", "epsilon, of 255", "AP, %", lines, marker="o")


def mean_by_severity(
    corruptions: Mapping[str, Mapping[int, Mapping[str, float]]], task: str
) -> dict[int, float]:
    """Severity -> mean AP over the corruptions that have it."""
    values: dict[int, list[float]] = {}
    for severities in corruptions.values():
        for severity, found in severities.items():
            if task in found:
                values.setdefault(severity, []).append(found[task])
    return {severity: fmean(values[severity]) for severity in sorted(values)}


def _plot(title: str, x: str, y: str, lines: Sequence[_Line], marker: str = "") -> Plot | None:
    lines = [line for line in lines if len(line.x)]
    if not lines:
        return None

    def draw(axes) -> None:
        for line in lines:
            axes.plot(
                *(line.x, line.y, line.style),
                color=line.colour,
                label=line.label,
                linewidth=1.6,
                marker=marker,
                markersize=4,
            )
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8.5)

    ends = "; ".join(
        f"{line.label} from {line.y[0]:.3g} at {line.x[0]:.3g} to {line.y[-1]:.3g} at "
        f"{line.x[-1]:.3g}"
        for line in lines
    )
    return Plot(title, f"{title}, {y} over {x}: {ends}.", render_svg(draw))
