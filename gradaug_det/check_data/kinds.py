"""The findings of ``gradaug-det check-data``: their kinds, how they are counted and shown.

kinds.json lists the kinds. What it says about the frameworks was seen with Detectron2's
DatasetMapper and MMDetection's CocoDataset; tests/cross/test_check_data.py shows each the broken
annotation again.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

SEVERITIES = ("error", "warning", "note")
"""Error: training or evaluation stops, or something wrong is learned. Warning: an annotation is
lost, or the frameworks differ over it. Note: worth knowing."""

MAX_EXAMPLES = 5  # of a kind; the count goes on


class Kind(NamedTuple):
    """One thing that can be wrong: its identifier, severity, and who does what with it."""

    name: str
    severity: str
    meaning: str
    detectron2: str
    mmdetection: str


_TABLE = json.loads((Path(__file__).parent / "kinds.json").read_text("utf-8"))
KINDS: dict[str, Kind] = {name: Kind(name, **values) for name, values in _TABLE.items()}
_ORDER = {name: (SEVERITIES.index(k.severity), row) for row, (name, k) in enumerate(KINDS.items())}


@dataclass
class Finding:
    """All occurrences of one kind: how many, and the first ones."""

    kind: Kind
    count: int = 0
    examples: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {**self.kind._asdict(), "count": self.count, "examples": self.examples}

    def __str__(self) -> str:
        """``3 x box-malformed: bbox is ... (first: image_id 1, ...)``."""
        first = describe_example(self.examples[0])
        shown = f" (first: {first})" if first else ""
        return f"{self.count} x {self.kind.name}: {self.kind.meaning}{shown}"


@dataclass(frozen=True)
class CheckResult:
    """The result of a check."""

    source: str  # the annotation file, or the root of the class folders
    images: str | None  # their folder; None if no file was looked at
    counts: dict[str, int]  # of images, annotations, categories (or classes)
    findings: tuple[Finding, ...] = ()  # errors first, then by the order of KINDS
    classes: tuple[str, ...] = ()  # names by category id, as Detectron2 numbers them
    file_order: tuple[str, ...] = ()  # names as the file lists them, which MMDetection goes by
    objects: dict[str, int] = field(default_factory=dict)  # name -> annotations of that category

    def at_least(self, severity: str) -> list[Finding]:
        """The findings of a severity or a worse one."""
        worst = SEVERITIES[: SEVERITIES.index(severity) + 1]
        return [finding for finding in self.findings if finding.kind.severity in worst]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "source": self.source,
            "images": self.images,
            "counts": self.counts,
            "findings": [finding.to_dict() for finding in self.findings],
        }


class Findings:
    """Collects findings, in addition to those ``found`` before."""

    def __init__(self, found: Iterable[Finding] = ()) -> None:
        self._found = {finding.kind.name: finding for finding in found}

    def add(self, kind: str, **example: Any) -> None:
        """Counts one occurrence; ``example`` is kept if it is among the first."""
        self.add_all(kind, (example,), lambda found: found)

    def add_all(
        self, kind: str, places: Iterable[Any], example: Callable[[Any], dict[str, Any]]
    ) -> None:
        """Counts an occurrence at each place; ``example`` describes the first ones."""
        for place in places:
            finding = self._found.setdefault(kind, Finding(KINDS[kind]))
            finding.count += 1
            if len(finding.examples) < MAX_EXAMPLES:
                shown = {key: _to_printable(value) for key, value in example(place).items()}
                finding.examples.append(shown)

    def __contains__(self, kind: str) -> bool:
        return kind in self._found

    def sorted(self) -> tuple[Finding, ...]:
        return tuple(self._found[name] for name in sorted(self._found, key=_ORDER.__getitem__))


def _to_printable(value: Any) -> Any:
    """A value from a file as a short JSON value: a broken one may be long, deep, NaN, or a text
    of control characters or half a surrogate pair."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return round(value, 3)
    if isinstance(value, str) and len(value) <= 400 and value.isprintable():
        return value
    if isinstance(value, list) and len(value) <= 4:
        return [reprlib.repr(v) if isinstance(v, list) else _to_printable(v) for v in value]
    return reprlib.repr(value)


def describe_example(example: dict[str, Any]) -> str:
    """``image_id 3, file_name "7.jpg", bbox [1, 2, 0, 4]``: what is a text has quotation marks."""
    given = {key: value for key, value in example.items() if value is not None}
    return ", ".join(f"{key} {json.dumps(given[key], ensure_ascii=False)}" for key in given)
