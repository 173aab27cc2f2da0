#!/usr/bin/env python
"""Puts the numbers and pictures of the last `make demo` into README.md and docs/demo/."""

import argparse
import base64
import io
import json
import re
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
MARKS = ("<!-- demo table: begin -->", "<!-- demo table: end -->")
COLUMNS = [(task, name) for task in ("bbox", "segm") for name in ("AP", "AP50", "AP75")]


def table(report: dict) -> str:
    """The AP table, one run a row, in Markdown."""
    kinds = {"bbox": "box", "segm": "mask"}
    lines = [
        "| mini-COCO val, 1 seed | " + " | ".join(f"{kinds[t]} {n}" for t, n in COLUMNS) + " |",
        "|:--|" + "--:|" * len(COLUMNS),
    ]
    for run in report["runs"]:
        cells = [f"{run['metrics'][task][name]:.1f}" for task, name in COLUMNS]
        lines.append(f"| {run['label']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def pictures(html: str, rows: int, columns: int) -> Image.Image:
    """The first pictures of the report, as one: ground truth, then each run's predictions."""
    data = re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", html)[: rows * columns]
    images = [Image.open(io.BytesIO(base64.b64decode(item))) for item in data]
    width, height = images[0].size
    sheet = Image.new("RGB", (width * columns, height * rows))
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * width, index // columns * height))
    return sheet


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, default=ROOT / "report")
    folder = parser.parse_args().report
    report = json.loads((folder / "report.json").read_text())
    out = ROOT / "docs" / "demo"
    out.mkdir(parents=True, exist_ok=True)
    for name in ("report.json", "report.md"):
        (out / name).write_text((folder / name).read_text())
    sheet = pictures((folder / "index.html").read_text(), 2, 1 + len(report["runs"]))
    sheet.save(out / "predictions.jpg", quality=85)
    readme = (ROOT / "README.md").read_text()
    head, rest = readme.split(MARKS[0])
    body = f"{MARKS[0]}\n{table(report)}\n{MARKS[1]}"
    (ROOT / "README.md").write_text(head + body + rest.split(MARKS[1])[1])
    print(table(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
