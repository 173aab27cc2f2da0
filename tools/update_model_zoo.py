#!/usr/bin/env python
"""Puts the package's index.json into MODEL_ZOO.md as a table."""

import sys
from pathlib import Path

from gradaug_det.utils.files import atomic_path
from gradaug_det.zoo.index import INDEX, load_index
from gradaug_det.zoo.publish import backbone_table

DOCUMENT = Path(__file__).resolve().parents[1] / "MODEL_ZOO.md"
MARKS = ("<!-- backbones: begin -->", "<!-- backbones: end -->")


def updated(text: str) -> str:
    """The document with today's table between its marks."""
    head, rest = text.split(MARKS[0])
    _, tail = rest.split(MARKS[1])
    return f"{head}{MARKS[0]}\n{backbone_table(load_index(INDEX).entries)}\n{MARKS[1]}{tail}"


def main() -> int:
    text = updated(DOCUMENT.read_text(encoding="utf-8"))
    with atomic_path(DOCUMENT) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
