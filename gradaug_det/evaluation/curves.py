"""Reading the scalars that Detectron2 writes while it trains."""

from __future__ import annotations

import json
import logging
import numbers
from pathlib import Path

from gradaug_det.errors import DataError

logger = logging.getLogger(__name__)

Curves = dict[str, list[tuple[int, float]]]


def read_detectron2_metrics(path: str | Path) -> Curves:
    """Read Detectron2's ``metrics.json``: one JSON object a line, each with its ``iteration``.

    A line that was cut off (training was killed while writing, perhaps resumed later) is skipped
    with a warning. If a resumed training wrote an iteration again, the later value counts.

    Args:
        path: the file written by Detectron2's ``JSONWriter``.

    Returns:
        ``{name: [(iteration, value), ...]}`` by increasing iteration, e.g. for ``total_loss``,
        ``gradaug/sub0/loss`` and ``bbox/AP``. NaN values are kept: they show that a loss diverged.

    Raises:
        DataError: the file does not exist or no line of it is a record.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; Detectron2 writes it into OUTPUT_DIR")
    values: dict[str, dict[int, float]] = {}
    skipped = records = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        record = _record(line)
        if record is None:
            skipped += 1
            continue
        records += 1
        iteration = int(record.pop("iteration"))
        for name, value in record.items():
            if isinstance(value, numbers.Real) and not isinstance(value, bool):
                values.setdefault(name, {})[iteration] = float(value)
    if not records:
        raise DataError(f"{path} has no line with a JSON object and its 'iteration'")
    if skipped:
        logger.warning("%s: skipped %d lines that are not complete records", path, skipped)
    return {name: sorted(points.items()) for name, points in values.items()}


def _record(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return None
    if isinstance(record, dict) and isinstance(record.get("iteration"), numbers.Real):
        return record
    return None
