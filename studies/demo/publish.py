"""Keeping a run of the demonstration in the repository: its report, a table and a picture."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
MARKS = ("<!-- demo table: begin -->", "<!-- demo table: end -->")
_COLUMNS = [(task, name) for task in ("bbox", "segm") for name in ("AP", "AP50", "AP75")]


def publish(report_folder: Path, here: Path = HERE) -> None:
    """Copies a report to ``results`` and writes the README's table anew.

    Args:
        report_folder: what :func:`studies.demo.study.run_demo` wrote.
        here: folder with ``README.md`` and ``results``.
    """
    report = json.loads((report_folder / "report.json").read_text("utf-8"))
    for name in ("report.json", "report.md"):
        text = (report_folder / name).read_text("utf-8")
        (here / "results" / name).write_text(text, "utf-8")
    sheet = _first_pictures(report_folder / "index.html", 2, 1 + len(report["runs"]))
    sheet.save(here / "results" / "predictions.jpg", quality=85)
    head, rest = (here / "README.md").read_text("utf-8").split(MARKS[0])
    text = f"{head}{MARKS[0]}\n{ap_table(report)}\n{MARKS[1]}{rest.split(MARKS[1])[1]}"
    (here / "README.md").write_text(text, "utf-8")


def ap_table(report: dict) -> str:
    """Returns the AP of a report's runs, one a row, in Markdown."""
    kinds = {"bbox": "box", "segm": "mask"}
    lines = [
        "| mini-COCO val, 1 seed | " + " | ".join(f"{kinds[t]} {n}" for t, n in _COLUMNS) + " |",
        "|:--|" + "--:|" * len(_COLUMNS),
    ]
    for run in report["runs"]:
        cells = [f"{run['metrics'][task][name]:.1f}" for task, name in _COLUMNS]
        lines.append(f"| {run['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _first_pictures(html: Path, rows: int, columns: int) -> Image.Image:
    """Returns the page's first pictures as one: ground truth, then each run's predictions."""
    data = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", html.read_text("utf-8"))
    images = [Image.open(io.BytesIO(base64.b64decode(item))) for item in data[: rows * columns]]
    width, height = images[0].size
    sheet = Image.new("RGB", (width * columns, height * rows))
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet
