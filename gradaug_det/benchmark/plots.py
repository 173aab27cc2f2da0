"""Plots of a benchmark: a colour each detector, explained beside the plot and not in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from gradaug_det.benchmark.records import Benchmark, DetectorResult, WidthResult
from gradaug_det.evaluation.coco import TASK_NAMES, PrecisionCurves
from gradaug_det.reports.plots import METHOD_COLOURS, Plot, render_svg

_STYLES = {"-": "Solid", "--": "Dashed", ":": "Dotted", "-.": "Dash-dotted"}
_OF_TASK = {"bbox": "-", "segm": "--", "keypoints": "-."}
_OF_IOU = {0.5: "-", 0.75: ":"}
Points = Sequence[tuple[float, float]]


@dataclass
class _Line:
    """A line of a detector.

    Args:
        position: of the detector, which gives the colour.
        style: matplotlib's.
        meaning: of the style.
    """

    detector: str
    position: int
    points: Points
    style: str
    meaning: str


def colour_at(position: int) -> str:
    """Returns the colour of a detector by its place in the report."""
    return METHOD_COLOURS[position % len(METHOD_COLOURS)]


def cost_plot(benchmark: Benchmark) -> Plot | None:
    """AP over multiply-adds, a line for each detector and task.

    None with fewer than 2 networks (detectors and widths) whose multiply-adds are known.
    """
    known = [r for d in benchmark.detectors for r in d.widths if r.cost.gflops is not None]
    if len(known) < 2:
        return None

    def points(detector: DetectorResult, task: str) -> Points:
        aps = [(r.cost.gflops, r.metric(task)) for r in detector.widths]
        return sorted(pair for pair in aps if None not in pair)

    lines = _task_lines(benchmark, points)
    return _plot("AP and cost", "GFLOPs an image", "AP, %", lines, marker="o")


def recall_plots(
    benchmark: Benchmark, curves: Mapping[str, Mapping[str, PrecisionCurves]]
) -> list[Plot]:
    """Precision over recall, a plot for each task.

    Args:
        curves: label of a detector -> task -> its curves.
    """
    plots = []
    for task, name in TASK_NAMES.items():
        lines = [
            _Line(detector.label, position, points, _OF_IOU[iou], f"IoU {iou:g}")
            for position, detector in enumerate(benchmark.detectors)
            for iou, points in curves[detector.label].get(task, {}).items()
        ]
        title = f"{name.capitalize()} precision and recall"
        plots.append(_plot(title, "recall, %", "precision, %", lines, top=100))
    return [plot for plot in plots if plot is not None]


def corruption_plot(benchmark: Benchmark) -> Plot | None:
    """AP over severity, mean over the corruptions; 0 is clean."""
    lines = _task_lines(benchmark, partial(_from_clean, WidthResult.ap_by_severity))
    ticks = sorted({x for line in lines for x, _ in line.points})
    return _plot("AP and severity", "severity (0: clean)", "AP, %", lines, marker="o", ticks=ticks)


def fgsm_plot(benchmark: Benchmark) -> Plot | None:
    """AP over FGSM's epsilon; 0 is clean."""
    lines = _task_lines(benchmark, partial(_from_clean, WidthResult.ap_by_epsilon))
    return _plot("AP and epsilon", "epsilon, of 255 (0: clean)", "AP, %", lines, marker="o")


def _from_clean(
    aps_of: Callable[[WidthResult, str], Mapping[float, float]], detector: DetectorResult, task: str
) -> Points:
    # The clean AP, at 0, and those of images that were changed; of the largest width.
    clean, changed = detector.widest.metric(task), aps_of(detector.widest, task)
    return [*([(0, clean)] if clean is not None and changed else []), *changed.items()]


def _task_lines(
    benchmark: Benchmark, points_of: Callable[[DetectorResult, str], Points]
) -> list[_Line]:
    return [
        _Line(detector.label, position, points_of(detector, task), _OF_TASK[task], TASK_NAMES[task])
        for position, detector in enumerate(benchmark.detectors)
        for task in detector.tasks
    ]


def _plot(
    title: str,
    x: str,
    y: str,
    lines: Sequence[_Line],
    *,
    marker: str = "",
    top: float | None = None,
    ticks: Sequence[float] | None = None,
) -> Plot | None:
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    highest = top or max(value for line in lines for _, value in line.points) or 1.0

    def draw(axes) -> None:
        look = {"linewidth": 1.6, "marker": marker, "markersize": 4}
        for line in lines:
            xs, ys = zip(*line.points, strict=True)
            axes.plot(xs, ys, line.style, color=colour_at(line.position), **look)
        axes.set(xlabel=x, ylabel=y, ylim=(0, 1.05 * highest))
        if ticks is not None:
            axes.set_xticks(ticks)

    ends = "; ".join(
        f"{line.detector}, {line.meaning} from {line.points[0][1]:.3g} at {line.points[0][0]:.3g} "
        f"to {line.points[-1][1]:.3g} at {line.points[-1][0]:.3g}"
        for line in lines
    )
    styles = {line.style: line.meaning for line in lines}
    return Plot(
        title,
        f"{title}, {y} over {x}: {ends}.",
        render_svg(draw),
        styles=" ".join(f"{_STYLES[style]}: {meaning}." for style, meaning in styles.items()),
    )
