"""Keeping a run of the demonstration in the repository: its report, the curve and a picture."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

from PIL import Image


def publish(report_folder: Path, results: Path) -> None:
    """Copies a report to the study's results; ``tools/update_model_zoo.py`` shows its AP then.

    Args:
        report_folder: what :func:`studies.demo.study.run_demo` wrote.
        results: folder to write to.
    """
    results.mkdir(parents=True, exist_ok=True)
    report = json.loads((report_folder / "report.json").read_text("utf-8"))
    for name in ("report.json", "report.md"):
        (results / name).write_text((report_folder / name).read_text("utf-8"), "utf-8")
    page = (report_folder / "index.html").read_text("utf-8")
    (results / "curve.svg").write_bytes(_embedded(page, "svg+xml")[0])
    sheet = _arrange(_embedded(page, "jpeg"), 2, 1 + len(report["detectors"]))
    sheet.save(results / "predictions.jpg", quality=85)


def _embedded(page: str, kind: str) -> list[bytes]:
    """Returns a page's pictures of that kind."""
    found = re.findall(rf"data:image/{re.escape(kind)};base64,([A-Za-z0-9+/=]+)", page)
    return [base64.b64decode(item) for item in found]


def _arrange(pictures: list[bytes], rows: int, columns: int) -> Image.Image:
    """Returns the first pictures as one: ground truth, then each detector's predictions."""
    images = [Image.open(io.BytesIO(picture)) for picture in pictures[: rows * columns]]
    width, height = images[0].size
    sheet = Image.new("RGB", (width * columns, height * rows))
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet
