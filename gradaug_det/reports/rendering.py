"""Templates, pictures inside a page, and files that are whole or not there: for all reports."""

from __future__ import annotations

import base64
import io
import json
import math
import numbers
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradaug_det.reports.pictures import Instance, draw_instances
from gradaug_det.reports.plots import Plot
from gradaug_det.utils.files import atomic_path

MISSING = "–"  # noqa: RUF001


def load_templates(*folders: Path) -> Any:
    """The Jinja environment of the reports; pages are escaped, Markdown is not.

    Args:
        folders: with further templates, which may include and import the package's own.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent / "templates"]),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,  # a wrong name is an error, not an empty cell
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "signed": with_sign}
    return environment


def draw_column(caption: str, note: str, picture: Any, instances: Sequence[Instance]) -> dict:
    """A picture with objects drawn into it, for a page: its caption and a data URL."""
    drawn = draw_instances(picture, instances)
    buffer = io.BytesIO()
    # A tenth of the size of PNG for photographs, at a quality where thin outlines stay clean.
    drawn.save(buffer, format="JPEG", quality=90, subsampling=0)
    return {
        "caption": caption,
        "note": note,
        "alt": f"{caption}: {', '.join(shown.label for shown in instances) or 'nothing'}",
        "width": drawn.width,
        "height": drawn.height,
        "source": data_url("image/jpeg", buffer.getvalue()),
    }


def count_items(items: Sequence, noun: str) -> str:
    """E.g. ``1 object``, ``3 objects``."""
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def format_json(content: dict) -> str:
    """JSON for readers: one point of a curve a line instead of four."""
    # allow_nan: NaN is no JSON, and browsers refuse the file.
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    return re.sub(r"\[\n\s*([^\s\[\],]+),\n\s*([^\s\[\],]+)\n\s*\]", r"[\1, \2]", text) + "\n"


def data_url(media_type: str, content: bytes) -> str:
    """Content as a URL that needs no file."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def embed_plots(plots: Iterable[Plot | None]) -> list[dict]:
    """Plots for a page: their fields and a data URL as ``source``; those that are None left out."""
    return [
        {**asdict(plot), "source": data_url("image/svg+xml", plot.svg.encode())}
        for plot in plots
        if plot is not None
    ]


def write_files(folder: str | Path, files: Mapping[str, str]) -> None:
    """Writes texts by their names, each in one step; the folder is made if needed."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        with atomic_path(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")


def format_number(value: float | None, digits: int = 2) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"


def with_sign(value: float, digits: int = 2) -> str:
    """A difference with its sign; a true minus sign, and no sign for what rounds to zero."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "\N{MINUS SIGN}") + text


def to_json_data(value: Any) -> Any:
    """JSON data: NaN becomes None (JSON has no NaN), a path its file name, NumPy a number."""
    if isinstance(value, dict):
        return {str(key): to_json_data(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_data(item) for item in value]
    if isinstance(value, os.PathLike):
        return Path(value).name
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)
