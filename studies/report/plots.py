"""Curves of trainings: losses and AP by iteration."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from gradaug_det.reports.plots import METHOD_COLOURS, Plot, render_svg
from studies.report.comparison import Method
from studies.report.records import RunRecord

TOTAL_LOSS = "total_loss"
AP_CURVES = {"bbox/AP": "Box AP", "segm/AP": "Mask AP"}
_SUB_LOSS = re.compile(r"gradaug/sub(\d+)/loss")


@dataclass
class _Line:
    label: str
    points: list[tuple[int, float]]
    colour: str
    dashed: bool = False


def training_plots(methods: Sequence[Method]) -> list[Plot]:
    """Total losses, sub-network losses and AP over the training, as far as they were logged.

    Args:
        methods: the baseline first; the position decides the colour.

    Returns:
        Plots in reading order; empty if no run has curves.
    """
    plots = [
        _plot("Total loss", "loss", _lines(methods, TOTAL_LOSS), smooth=True, from_zero=True),
        *(_sub_network_plot(run) for method in methods for run in method.runs[:1]),
    ]
    for name, title in AP_CURVES.items():
        lines = [line for line in _lines(methods, name) if len(line.points) > 1]
        plots.append(_plot(f"{title} during training", f"{title}, %", lines, from_zero=True))
    return [plot for plot in plots if plot is not None]


def sub_network_indices(run: RunRecord) -> list[int]:
    """Indices of the sub-networks whose loss the run has logged."""
    matches = (_SUB_LOSS.fullmatch(name) for name in run.curves)
    return sorted(int(match[1]) for match in matches if match)


def _lines(methods: Sequence[Method], name: str) -> list[_Line]:
    return [
        # Only the first seed is named in the legend: all seeds of a method share its colour.
        _Line(
            "" if number else method.label, points, METHOD_COLOURS[position % len(METHOD_COLOURS)]
        )
        for position, method in enumerate(methods)
        for number, run in enumerate(method.runs)
        if (points := _without_nonfinite(run.curves.get(name, [])))
    ]


def _sub_network_plot(run: RunRecord) -> Plot | None:
    indices = sub_network_indices(run)
    if not indices:
        return None
    lines = []
    if TOTAL_LOSS in run.curves:
        full = _without_nonfinite(run.curves[TOTAL_LOSS])
        lines.append(_Line("full network", full, METHOD_COLOURS[0], dashed=True))
    for index in indices:
        widths = [value for _, value in run.curves.get(f"gradaug/sub{index}/width", [])]
        width = f" (mean width {fmean(widths):.2f})" if widths else ""
        lines.append(
            _Line(
                f"sub-network {index}{width}",
                _without_nonfinite(run.curves[f"gradaug/sub{index}/loss"]),
                METHOD_COLOURS[1 + index % (len(METHOD_COLOURS) - 1)],
            )
        )
    return _plot(f"Sub-network losses, {run.label}", "loss", lines, smooth=True, from_zero=True)


def _plot(
    title: str, unit: str, lines: list[_Line], smooth: bool = False, from_zero: bool = False
) -> Plot | None:
    lines = [line for line in lines if line.points]
    if not lines:
        return None

    def draw(axes) -> None:
        for line in lines:
            steps, values = zip(*line.points, strict=True)
            style = "--" if line.dashed else "-"
            label = line.label or "_unnamed"
            marker = "" if smooth else "o"
            if smooth and len(values) > 30:
                # The raw curve stays visible behind: smoothing must not hide a spike.
                axes.plot(steps, values, style, color=line.colour, alpha=0.35, linewidth=0.8)
                values = _moving_average(values, window=max(5, len(values) // 20))
            axes.plot(
                steps, values, style, color=line.colour, label=label, linewidth=1.6, marker=marker
            )
            axes.lines[-1].set_markersize(3.5)
        axes.set_xlabel("iteration")
        axes.set_ylabel(unit)
        if from_zero:
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        axes.legend(frameon=False, fontsize=9.5)

    return Plot(title, _describe(title, lines), render_svg(draw))


def _describe(title: str, lines: list[_Line]) -> str:
    ends = "; ".join(
        f"{line.label} from {line.points[0][1]:.3g} at iteration {line.points[0][0]} "
        f"to {line.points[-1][1]:.3g} at iteration {line.points[-1][0]}"
        for line in lines
        if line.label
    )
    return f"{title}: {ends}."


def _without_nonfinite(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(step, value) for step, value in points if math.isfinite(value)]


def _moving_average(values: Sequence[float], window: int) -> list[float]:
    half = window // 2
    return [fmean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))]
