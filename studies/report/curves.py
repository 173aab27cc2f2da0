"""Reading the scalars that Detectron2 and MMEngine write while they train."""

from __future__ import annotations

import json
import logging
import math
import numbers
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

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
    return _curves(_records([path], "iteration"))


def read_mmengine_metrics(work_dir: str | Path) -> Curves:
    """Read the scalars of a work folder of MMEngine in the shape of Detectron2's.

    Every start of a training has a folder of its own there, named by its time; a resumed training
    goes on in a new one. Lines that were cut off and iterations that were done again are treated
    as in :func:`read_detectron2_metrics`.

    Args:
        work_dir: MMEngine's ``work_dir``, of an iteration based training.

    Returns:
        As :func:`read_detectron2_metrics`: iterations count from 0, ``loss`` is ``total_loss``,
        ``coco/bbox_mAP`` and its kin are ``bbox/AP`` in per cent; other names are MMEngine's.

    Raises:
        DataError: there are no scalars, or no line of them is a record.
    """
    work_dir = Path(work_dir)
    files = sorted(work_dir.glob("*/vis_data/scalars.json"))
    if not files:
        raise DataError(
            f"{work_dir} has no */vis_data/scalars.json; MMEngine's LocalVisBackend writes it"
        )
    return _curves(
        # "iter" is the step again.
        (step - 1, dict(_from_mmengine(name, v) for name, v in record.items() if name != "iter"))
        for step, record in _records(files, "step")
    )


_MMENGINE_AP = re.compile(r"coco/(bbox|segm)_mAP(?:_(50|75|s|m|l))?")


def _from_mmengine(name: str, value: Any) -> tuple[str, Any]:
    """Name and value as Detectron2 would log them."""
    if name == "loss":
        return "total_loss", value
    match = _MMENGINE_AP.fullmatch(name)
    if match and isinstance(value, numbers.Real):
        # MMDetection says -1 where there is no object of a size.
        return f"{match[1]}/AP{match[2] or ''}", 100 * value if value >= 0 else math.nan
    return name, value


def _curves(records: Iterable[tuple[int, dict]]) -> Curves:
    values: dict[str, dict[int, float]] = {}
    for iteration, record in records:
        for name, value in record.items():
            if isinstance(value, numbers.Real) and not isinstance(value, bool):
                values.setdefault(name, {})[iteration] = float(value)
    return {name: sorted(points.items()) for name, points in values.items()}


def _records(files: Sequence[Path], counter: str) -> list[tuple[int, dict]]:
    """(iteration, scalars) of each whole line; ``counter`` is the iteration's key."""
    found = []
    for path in files:
        skipped = 0
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                record = None
            if isinstance(record, dict) and isinstance(record.get(counter), numbers.Real):
                found.append((int(record.pop(counter)), record))
            else:
                skipped += 1
        if skipped:
            logger.warning("%s: skipped %d lines that are not complete records", path, skipped)
    if not found:
        names = ", ".join(str(path) for path in files)
        raise DataError(f"{names} has no line with a JSON object and its {counter!r}")
    return found
