"""Plots of a report as small SVG pictures that follow the reader's light or dark setting."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass

# One colour a method, readable on white and on near-black; the baseline's is the quiet one.
METHOD_COLOURS = ("#7487a3", "#d9682f", "#2a9d8f", "#9a6bd6", "#b9911c", "#cf4b86")

# matplotlib writes fixed colours; these two stand for "ink" and "faint" and become CSS variables.
_INK, _FAINT = "#010203", "#040506"
_STYLE = (
    "<style>:root{--ink:#3c4350;--faint:#dfe3e9}@media (prefers-color-scheme:dark)"
    "{:root{--ink:#b9c0cc;--faint:#3a404b}}text{font-family:system-ui,sans-serif}</style>"
)
_RC = {
    # Text stays text: sharp, and a third of the size of outlines.
    "svg.fonttype": "none",
    # The same numbers give the same file.
    "svg.hashsalt": "gradaug_det",
    "font.size": 10,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "text.color": _INK,
    "grid.color": _FAINT,
}
_SIZE_INCHES = (4.6, 2.8)  # about a phone's width, so that text is not shrunk there


@dataclass
class Plot:
    """A finished plot: its caption, a description for those who cannot see it, and SVG text.

    ``styles`` explains its kinds of lines, e.g. ``Solid: box. Dashed: mask.``
    """

    title: str
    description: str
    svg: str
    width: int = round(_SIZE_INCHES[0] * 72)  # in CSS pixels; matplotlib's points
    height: int = round(_SIZE_INCHES[1] * 72)
    styles: str = ""


def render_svg(draw: Callable) -> str:
    """Returns the drawing of ``draw(axes)`` as SVG text."""
    # The object interface: pyplot would keep figures in a global list and pick a GUI backend.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.subplots()
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.grid(axis="y", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # without the document type, which names an external file
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = svg.replace("<defs>", f"{_STYLE}<defs>", 1)
    return svg.replace(_INK, "var(--ink)").replace(_FAINT, "var(--faint)")
