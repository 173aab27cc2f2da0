"""Keeping a run of the demonstration in the repository: its report and a picture."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent


def publish(report_folder: Path, here: Path = HERE) -> None:
    """Copies a report to ``results``; ``tools/update_model_zoo.py`` shows its AP then.

    Args:
        report_folder: what :func:`studies.demo.study.run_demo` wrote.
        here: folder with ``results``.
    """
    report = json.loads((report_folder / "report.json").read_text("utf-8"))
    for name in ("report.json", "report.md"):
        text = (report_folder / name).read_text("utf-8")
        (here / "results" / name).write_text(text, "utf-8")
    sheet = _first_pictures(report_folder / "index.html", 2, 1 + len(report["runs"]))
    sheet.save(here / "results" / "predictions.jpg", quality=85)


def _first_pictures(html: Path, rows: int, columns: int) -> Image.Image:
    """Returns the page's first pictures as one: ground truth, then each run's predictions."""
    data = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", html.read_text("utf-8"))
    images = [Image.open(io.BytesIO(base64.b64decode(item))) for item in data[: rows * columns]]
    width, height = images[0].size
    sheet = Image.new("RGB", (width * columns, height * rows))
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet
