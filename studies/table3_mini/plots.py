"""AP over something else than iterations: means over seeds, with what single seeds gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from gradaug_det.reports.plots import METHOD_COLOURS, render_svg


@dataclass(frozen=True)
class Point:
    """A cell in a plot.

    Args:
        x: in the axis' unit.
        values: AP of each seed, in per cent.
    """

    x: float
    values: list[float]


@dataclass(frozen=True)
class Curve:
    """A method's points, joined in their order.

    Args:
        colour: position in :data:`gradaug_det.reports.plots.METHOD_COLOURS`.
    """

    label: str
    points: list[Point]
    colour: int


def ap_plot(curves: Sequence[Curve], x_label: str, y_label: str, bottom: float | None = 0) -> str:
    """SVG text: a line through the means, a small dot for each seed; empty without any point.

    Args:
        bottom: the least AP that is shown; None: of the points.
    """
    if not any(curve.points for curve in curves):
        return ""

    def draw(axes) -> None:
        for curve in curves:
            if not curve.points:
                continue
            colour = METHOD_COLOURS[curve.colour]
            xs = [point.x for point in curve.points]
            means = [fmean(point.values) for point in curve.points]
            axes.plot(xs, means, "-o", color=colour, label=curve.label, linewidth=1.6, markersize=5)
            for point in curve.points:
                dots = [point.x] * len(point.values)
                axes.plot(dots, point.values, "o", color=colour, alpha=0.45, markersize=2.5)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=bottom)
        axes.legend(frameon=False, fontsize=9.5)

    return render_svg(draw)
