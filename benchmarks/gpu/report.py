"""The benchmark's files: ``gpu.json`` holds what was found, ``gpu.md`` says it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gradaug_det.reports.rendering import format_json, load_templates, write_files
from gradaug_det.utils.environment import machine_line

TEMPLATES = Path(__file__).parents[1] / "templates"
_COMPARED = ("first", "again", "peak_bytes")
_GROUP = ("batch", "precision", "benchmark")


def write_report(folder: Path, content: dict[str, Any]) -> Path:
    """Writes what :func:`benchmarks.gpu.__main__.run` returns; returns the Markdown file."""
    parts = content["parts"]
    rows = [row for part in parts.values() for row in part.values()]
    failed = sum("error" in row or row.get("difference", 0) > row.get("allowed", 0) for row in rows)
    text = (
        load_templates(TEMPLATES)
        .get_template("gpu.md.j2")
        .render(
            **content,
            failed=failed,
            machine=machine_line(content["environment"]),
            trainings=add_ratios([row for row in parts["steps"].values() if "again" in row]),
        )
    )
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    write_files(folder, {"gpu.json": format_json(content), "gpu.md": f"{text}\n"})
    return folder / "gpu.md"


def add_ratios(trainings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the trainings with ``ratios`` to the plain one of their group; None without one."""

    def group(row: dict[str, Any]) -> tuple:
        return tuple(row[key] for key in _GROUP)

    plain = {group(row): row for row in trainings if row["variant"] == "plain"}

    def ratio(row: dict[str, Any], key: str) -> float | None:
        beside = plain.get(group(row), {}).get(key)
        return row[key] / beside if beside else None

    return [{**row, "ratios": {key: ratio(row, key) for key in _COMPARED}} for row in trainings]
