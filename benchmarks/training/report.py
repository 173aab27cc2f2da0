"""The benchmark's files: ``training.json`` holds what was measured, ``training.md`` says it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.training.workload import ALTERNATING, TASKS
from gradaug_det.errors import DataError
from gradaug_det.reports.rendering import format_json, load_templates, write_files
from gradaug_det.utils.environment import machine_line

TEMPLATES = Path(__file__).parents[1] / "templates"
NAME = "training"
SCHEMA_VERSION = 2


def summarise(measured: dict[str, Any], clock: str = "cpu") -> dict[str, dict[str, Any]]:
    """Ratios to the plain step, by variant.

    Args:
        measured: from :func:`benchmarks.training.measure.measure`.
        clock: ``cpu`` or ``wall``: the one whose ratio is compared with the bound.

    Returns:
        Variant -> ``wall``, ``cpu`` (medians of the ratios within a round; of alternating passes,
        whose steps differ by design, means), ``bound`` (mean of the
        ratios of FLOPs), ``overhead`` (median over the rounds of time ratio / bound), ``memory``
        (None where nobody can tell) and ``passes``: for the full pass, each sub-network's and the
        rest ``time`` (median of the share of the plain step's) and ``flops`` (mean).
    """
    plain = measured["plain"]
    return {
        name: _ratios(variant, plain, clock, fmean if name == ALTERNATING.name else median)
        for name, variant in measured.items()
        if name != "plain"
    }


def _ratios(
    variant: dict[str, Any],
    plain: dict[str, Any],
    clock: str,
    middle: Callable[[list[float]], float],
) -> dict[str, Any]:
    pairs = list(zip(variant["rounds"], plain["rounds"], strict=True))
    ratios = {
        meter: [sum(own[meter]) / sum(one[meter]) for own, one in pairs]
        for meter in ("wall", "cpu", "flops")
    }
    shares = {
        meter: list(
            zip(*([x / sum(one[meter]) for x in own[meter]] for own, one in pairs), strict=True)
        )
        for meter in (clock, "flops")
    }
    overheads = [t / f for t, f in zip(ratios[clock], ratios["flops"], strict=True)]
    peaks = variant["peak_bytes"], plain["peak_bytes"]
    return {
        "wall": middle(ratios["wall"]),
        "cpu": middle(ratios["cpu"]),
        "bound": fmean(ratios["flops"]),
        "overhead": median(overheads),
        "memory": None if None in peaks else peaks[0] / peaks[1],
        "passes": [
            {"time": middle(times), "flops": fmean(flops)}
            for times, flops in zip(shares[clock], shares["flops"], strict=True)
        ],
    }


def clock_of(workload: dict[str, Any]) -> str:
    """Processor time where the processor computes, else wall time."""
    return "cpu" if workload["device"] == "cpu" else "wall"


def write_report(folder: str | Path, task: str, content: dict[str, Any]) -> Path:
    """Writes a task's results, beside those of other tasks and of other settings that are in the
    folder already.

    Args:
        folder: made if needed.
        task: a key of ``TASKS``.
        content: ``measured`` (see :func:`benchmarks.training.measure.measure`), ``workload``,
            ``command`` and ``environment``.

    Returns:
        The Markdown file.

    Raises:
        DataError: the folder's ``training.json`` is of something else.
    """
    folder = Path(folder)
    summary = summarise(content["measured"], clock_of(content["workload"]))
    new = {"task": task, "summary": summary, **content}
    sections = [
        s for s in _read_sections(folder / f"{NAME}.json") if _measures(s) != _measures(new)
    ]
    ordered = sorted([*sections, new], key=lambda s: list(TASKS).index(s["task"]))
    everything = {"schema_version": SCHEMA_VERSION, "sections": ordered}
    write_files(folder, {f"{NAME}.json": format_json(everything), f"{NAME}.md": _markdown(ordered)})
    return folder / f"{NAME}.md"


def write_profile(folder: str | Path, task: str, variant: str, table: str, command: str) -> Path:
    """Writes a profiler's table as Markdown."""
    table = "\n".join(line.rstrip() for line in table.splitlines())
    text = f"# One step: {TASKS[task].title}, {variant}\n\n`{command}`\n\n```\n{table}\n```\n"
    name = f"profile_{task}_{variant}.md"
    write_files(folder, {name: text})
    return Path(folder) / name


def _measures(section: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns the subject of a section: a second one of the same replaces it."""
    return section["task"], json.loads(json.dumps(section["workload"]))


def _read_sections(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema_version"] == SCHEMA_VERSION:
            return content["sections"]
    except (ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{path} is not of this benchmark; give another --out, or remove that file")


def _markdown(sections: list[dict[str, Any]]) -> str:
    shown = [
        {
            "title": _title(content),
            "workload": content["workload"],
            "rounds": len(content["measured"]["plain"]["rounds"]),
            "clock": {"cpu": "processor", "wall": "wall"}[clock_of(content["workload"])],
            "plain": _plain_numbers(content["measured"]["plain"]),
            "rows": content["summary"],
            "passes": max(len(row["passes"]) for row in content["summary"].values()) - 2
            if content["summary"]
            else 0,
            "command": content["command"],
            "environment": content["environment"],
            "machine": machine_line(content["environment"]),
        }
        for content in sections
    ]
    return load_templates(TEMPLATES).get_template("training.md.j2").render(sections=shown)


def _title(section: dict[str, Any]) -> str:
    workload = section["workload"]
    settings = ["channels last"] if workload["channels_last"] else []
    settings += [f"{key} {value}" for key, value in workload["options"].items()]
    height, width = workload["size"]
    return ", ".join([TASKS[section["task"]].title, f"{height}x{width}", *settings])


def _plain_numbers(plain: dict[str, Any]) -> dict[str, Any]:
    """The plain step in itself: seconds, 10^9 FLOPs, 10^6 bytes."""
    rounds, peak = plain["rounds"], plain["peak_bytes"]
    return {
        "wall": median(sum(entry["wall"]) for entry in rounds),
        "cpu": median(sum(entry["cpu"]) for entry in rounds),
        "gflops": fmean(sum(entry["flops"]) for entry in rounds) / 1e9,
        "megabytes": None if peak is None else peak / 1e6,
    }
