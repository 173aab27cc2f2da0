"""Plots of a benchmark: a marker each detector, explained beside the plot and not in it."""

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
# When all colours are used up, they begin again in another shape: for matplotlib, and as CSS.
_SHAPES = (
    ("o", "border-radius:50%"),
    ("s", "border-radius:0"),
    ("^", "clip-path:polygon(50% 0,100% 100%,0 100%)"),
    ("D", "clip-path:polygon(50% 0,100% 50%,50% 100%,0 50%)"),
)
Points = Sequence[tuple]  # (x, y), or (x, y, text to write there)


@dataclass
class _Line:
    """A line of a detector.

    Args:
        position: of the detector, which gives colour and shape.
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


def shape_at(position: int) -> tuple[str, str]:
    """Returns the shape of a detector's markers, as matplotlib's name and as CSS."""
    return _SHAPES[position // len(METHOD_COLOURS) % len(_SHAPES)]


def cost_plot(benchmark: Benchmark) -> Plot | None:
    """AP over latency, a line for each detector and a point for each width.

    Over multiply-adds where no time was measured. AP is of the report's first task.
    """
    results = [result for detector in benchmark.detectors for result in detector.widths]
    timed = any(result.cost.milliseconds is not None for result in results)
    named = any(result.width != 1 for result in results)

    def points(detector: DetectorResult, task: str) -> Points:
        found = [
            (r.cost.milliseconds if timed else r.cost.gflops, r.metric(task), f"{r.width:g}")
            for r in sorted(detector.widths, key=lambda result: result.width)
            if task == benchmark.tasks[0]
        ]
        return [point if named else point[:2] for point in found if None not in point]

    lines = _task_lines(benchmark, points)
    title, x = ("AP and latency", "ms") if timed else ("AP and multiply-adds", "GFLOPs")
    return _plot(title + " by width" * named, f"{x} an image", "AP, %", lines, _zoom)


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
        plots.append(_plot(title, "recall, %", "precision, %", lines))
    return [plot for plot in plots if plot is not None]


def corruption_plot(benchmark: Benchmark) -> Plot | None:
    """AP over severity, mean over the corruptions; 0 is clean."""
    lines = _task_lines(benchmark, partial(_from_clean, WidthResult.ap_by_severity))
    ticks = sorted({x for line in lines for x, _ in line.points})
    x, y = "severity (0: clean)", "AP, %"
    return _plot("AP and severity", x, y, lines, lambda axes, _: axes.set_xticks(ticks))


def fgsm_plot(benchmark: Benchmark) -> Plot | None:
    """AP over FGSM's epsilon; 0 is clean."""
    lines = _task_lines(benchmark, partial(_from_clean, WidthResult.ap_by_epsilon))
    return _plot("AP and epsilon", "epsilon, of 255 (0: clean)", "AP, %", lines)


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
    adjust: Callable[..., object] = lambda axes, points: None,
) -> Plot | None:
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    styles = {line.style: line.meaning for line in lines}
    if len(styles) == 1:
        y = f"{styles.popitem()[1]} {y}"
    points = [point for line in lines for point in line.points]

    def draw(axes) -> None:
        look = {"linewidth": 1.6, "markersize": 4, "clip_on": False}
        for line in lines:
            xs, ys, *_ = zip(*line.points, strict=True)
            look |= {"color": colour_at(line.position), "marker": shape_at(line.position)[0]}
            axes.plot(xs, ys, line.style, markevery=len(xs) // 10 or 1, **look)
        axes.set(xlabel=x, ylabel=y, ylim=(0, 1.05 * max(y for _, y, *_ in points) or 1))
        adjust(axes, points)

    ends = "; ".join(
        f"{line.detector}, {line.meaning} from {line.points[0][1]:.3g} at {line.points[0][0]:.3g} "
        f"to {line.points[-1][1]:.3g} at {line.points[-1][0]:.3g}"
        for line in lines
    )
    return Plot(
        title,
        f"{title}, {y} over {x}: {ends}.",
        render_svg(draw),
        styles=" ".join(f"{_STYLES[style]}: {meaning}." for style, meaning in styles.items()),
    )


def _zoom(axes, points: Points) -> None:
    # Axes as far as the points go; texts are written but for those in the way of earlier ones.
    for at, least, set_limits in ((0, 0, axes.set_xlim), (1, 1, axes.set_ylim)):
        low, high = (pick(point[at] for point in points) for pick in (min, max))
        room = max(0.1 * (high - low), 0.05 * high, least)
        set_limits(max(0, low - room), high + room)
    taken: list[tuple[float, float]] = []
    for x, y, *texts in points:
        column, row = axes.transData.transform((x, y))
        if texts and all(abs(column - c) > 44 or abs(row - r) > 16 for c, r in taken):
            look = {"textcoords": "offset points", "ha": "right", "fontsize": 8}
            axes.annotate(texts[0], (x, y), (-3, 3), **look)
            taken.append((column, row))
