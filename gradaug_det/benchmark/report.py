"""Writing a benchmark as report.json, report.md and a self-contained index.html."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from gradaug_det.benchmark.plots import (
    colour,
    corruption_plot,
    cost_plot,
    fgsm_plot,
    mean_by_severity,
    recall_plots,
    tasks_of,
    widest,
)
from gradaug_det.benchmark.ranking import image_scores
from gradaug_det.benchmark.records import Benchmark, DetectorResult, WidthResult
from gradaug_det.benchmark.wording import summarise
from gradaug_det.evaluation.coco import COCO_METRICS
from gradaug_det.evaluation.coco_data import load_ground_truth, load_predictions
from gradaug_det.evaluation.comparison import CATEGORY_PREFIX, TASK_NAMES
from gradaug_det.evaluation.content import number_text, plain
from gradaug_det.evaluation.environment import machine_line
from gradaug_det.evaluation.pictures import predicted_instances, read_image, truth_instances
from gradaug_det.evaluation.rendering import (
    counted,
    data_url,
    json_text,
    picture_column,
    templates,
    write_files,
)

SCHEMA_VERSION = 1  # of report.json; raised when a key changes its meaning or goes away
_SIZES = {"APs": "small", "APm": "medium", "APl": "large"}


def write_benchmark(out_dir: str | Path, benchmark: Benchmark) -> Path:
    """Write ``report.json``, ``report.md`` and ``index.html`` into a folder.

    All three are made before the first is written, and each replaces its predecessor in one step.

    Args:
        out_dir: folder, created if needed.
        benchmark: what was measured.

    Returns:
        Path of ``index.html``, which needs no other file and no network.

    Raises:
        DataError: ground truth, predictions or images that cannot be used.
    """
    truth = load_ground_truth(benchmark.gt_json)
    for detector in benchmark.detectors:
        for result in detector.widths:
            result.predictions = load_predictions(result.predictions)
    ids = benchmark.image_ids or [image["id"] for image in truth["images"]]
    best, worst = _ranked(benchmark, truth, ids) if benchmark.image_root else ([], [])
    content = _content(benchmark, truth, ids, best, worst)
    view = {
        **content,
        "machine": machine_line(benchmark.environment),
        "columns": [
            {"label": _column_label(detector, result), "colour": colour(position)}
            for position, detector in enumerate(benchmark.detectors)
            for result in detector.widths
        ],
        "ap_rows": _ap_rows(benchmark),
        "cost_rows": _cost_rows(benchmark),
        "corruption_rows": _corruption_rows(benchmark),
        "fgsm_rows": _fgsm_rows(benchmark),
        "legend_items": [
            {"name": detector.label, "label": detector.label} for detector in benchmark.detectors
        ],
        "colours": {d.label: colour(i) for i, d in enumerate(benchmark.detectors)},
        "tasks": TASK_NAMES,
    }
    plots = [
        cost_plot(benchmark),
        *recall_plots(benchmark, truth),
        corruption_plot(benchmark),
        fgsm_plot(benchmark),
    ]
    html_view = {
        **view,
        "plots": [
            {**asdict(plot), "source": data_url("image/svg+xml", plot.svg.encode())}
            for plot in plots
            if plot is not None
        ],
        "size_bars": _bars(benchmark, _SIZES),
        "category_bars": _bars(benchmark, _categories(benchmark)),
        "picture_groups": [
            {"title": title, "rows": [_picture_row(benchmark, truth, *entry) for entry in entries]}
            for title, entries in (("Worst", worst), ("Best", best))
            if entries
        ],
    }
    environment = templates()
    write_files(
        out_dir,
        {
            "report.json": json_text(content),
            "report.md": environment.get_template("benchmark.md.j2").render(view),
            "index.html": environment.get_template("benchmark.html.j2").render(html_view),
        },
    )
    return Path(out_dir) / "index.html"


def _content(
    benchmark: Benchmark, truth: dict, ids: Sequence[int], best: list, worst: list
) -> dict:
    """Everything numeric as JSON data: what ``report.json`` holds."""
    chosen = set(ids)
    return plain(
        {
            "schema_version": SCHEMA_VERSION,
            "title": benchmark.title,
            "summary": summarise(benchmark),
            "dataset": {
                "name": benchmark.dataset,
                "annotation_file": Path(benchmark.gt_json).name,
                "images": len(ids),
                "of_images": len(truth["images"]),
                "objects": sum(a["image_id"] in chosen for a in truth["annotations"]),
                "categories": [category["name"] for category in truth["categories"]],
            },
            "detectors": [
                {
                    **{k: getattr(d, k) for k in ("label", "framework", "config", "weights")},
                    "widths": [
                        {
                            "width": result.width,
                            "metrics": result.metrics,
                            "detections": len(result.predictions),
                            "cost": asdict(result.cost),
                            "mPC": {task: result.mpc(task) for task in tasks_of(d)},
                            "rPC": {task: result.rpc(task) for task in tasks_of(d)},
                            "corruptions": result.corruptions,
                            "fgsm": {f"{e:g}": found for e, found in result.fgsm.items()},
                        }
                        for result in d.widths
                    ],
                }
                for d in benchmark.detectors
            ],
            "pictures": {
                "score_threshold": benchmark.score_threshold,
                "best": [{"image_id": i, "f1": score} for i, score in best],
                "worst": [{"image_id": i, "f1": score} for i, score in worst],
            },
            "command": benchmark.command,
            "environment": benchmark.environment,
        }
    )


def _column_label(detector: DetectorResult, result: WidthResult) -> str:
    if len(detector.widths) == 1 and result.width == 1:
        return detector.label
    return f"{detector.label}, width {result.width:g}"


def _results(benchmark: Benchmark) -> list[WidthResult]:
    return [result for detector in benchmark.detectors for result in detector.widths]


def _ap_rows(benchmark: Benchmark) -> list[dict]:
    return [
        {
            "task": task,
            "metric": metric,
            "cells": [_text(r.metrics.get(task, {}).get(metric)) for r in _results(benchmark)],
        }
        for task in TASK_NAMES
        if any(task in r.metrics for r in _results(benchmark))
        for metric in COCO_METRICS
    ]


def _cost_rows(benchmark: Benchmark) -> list[dict]:
    """Durations also as multiples of the first detector's at its largest width."""
    costs = [result.cost for result in _results(benchmark)]
    reference = widest(benchmark.detectors[0]).cost.milliseconds
    rows = [
        {"name": "parameters", "cells": [f"{cost.parameters:,}" for cost in costs]},
        {"name": "GFLOPs", "cells": [_text(cost.gflops) for cost in costs]},
        {"name": "ms an image", "cells": [_text(cost.milliseconds, 1) for cost in costs]},
        {
            "name": "time ratio",
            "cells": [
                _text(cost.milliseconds / reference if reference and cost.milliseconds else None)
                for cost in costs
            ],
        },
        {"name": "peak MB", "cells": [_text(cost.peak_megabytes, 1) for cost in costs]},
    ]
    return [row for row in rows if any(cell != _text(None) for cell in row["cells"])]


def _corruption_rows(benchmark: Benchmark) -> list[dict]:
    """For each task: clean, mPC, rPC, each severity (mean over corruptions), each corruption."""
    rows = []
    measured = [widest(d) for d in benchmark.detectors]
    for task in TASK_NAMES:
        if not any(result.mpc(task) is not None for result in measured):
            continue
        severities = [mean_by_severity(result.corruptions, task) for result in measured]

        def row(name: str, values: list, main: bool = False, task: str = task) -> dict:
            cells = [_text(value) for value in values]
            return {"task": task, "name": name, "cells": cells, "main": main}

        rows.append(row("clean AP", [r.metrics.get(task, {}).get("AP") for r in measured], True))
        rows.append(row("mPC", [r.mpc(task) for r in measured]))
        rows.append(row("rPC, %", [r.rpc(task) for r in measured]))
        for severity in sorted({s for found in severities for s in found}):
            rows.append(row(f"severity {severity}", [found.get(severity) for found in severities]))
        for kind in dict.fromkeys(kind for r in measured for kind in r.corruptions):
            values = [_mean_of(r.corruptions.get(kind, {}), task) for r in measured]
            rows.append(row(kind.replace("_", " "), values))
    return rows


def _fgsm_rows(benchmark: Benchmark) -> list[dict]:
    measured = [widest(d) for d in benchmark.detectors]
    return [
        {
            "task": task,
            "name": f"epsilon {epsilon:g}/255",
            "cells": [_text(r.fgsm.get(epsilon, {}).get(task)) for r in measured],
            "main": False,
        }
        for task in TASK_NAMES
        for epsilon in sorted({e for r in measured for e in r.fgsm})
        if any(task in r.fgsm.get(epsilon, {}) for r in measured)
    ]


def _mean_of(severities: Any, task: str) -> float | None:
    values = [found[task] for found in severities.values() if task in found]
    return fmean(values) if values else None


def _bars(benchmark: Benchmark, names: dict[str, str]) -> dict[str, list[dict]]:
    """For each task: a row for each metric (key of ``names``) with every detector's number."""
    bars = {}
    for task in TASK_NAMES:
        detectors = [d for d in benchmark.detectors if task in tasks_of(d)]
        rows = [
            {
                "category": title,
                "values": [
                    {"method": d.label, "value": _finite(widest(d).metrics[task].get(metric))}
                    for d in detectors
                ],
            }
            for metric, title in names.items()
        ]
        rows = [row for row in rows if any(v["value"] is not None for v in row["values"])]
        if rows:
            bars[task] = rows
    return bars


def _categories(benchmark: Benchmark) -> dict[str, str]:
    """Metric -> category, by falling box AP of the first detector."""
    metrics = widest(benchmark.detectors[0]).metrics["bbox"]
    names = [name for name in metrics if name.startswith(CATEGORY_PREFIX)]
    names.sort(key=lambda name: -(_finite(metrics[name]) or 0.0))
    return {name: name.removeprefix(CATEGORY_PREFIX) for name in names}


def _ranked(benchmark: Benchmark, truth: dict, ids: Sequence[int]) -> tuple[list, list]:
    """(image id, F1) of the best and of the worst images; no image is both."""
    first = widest(benchmark.detectors[0])
    scores = image_scores(truth, first.predictions, ids, benchmark.score_threshold)
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    count = min(benchmark.num_pictures, len(ranked) // 2)
    return ranked[:count], ranked[::-1][:count]


def _picture_row(benchmark: Benchmark, truth: dict, image_id: int, score: float) -> dict:
    """Ground truth, then each detector's detections."""
    image = next(image for image in truth["images"] if image["id"] == image_id)
    picture = read_image(Path(benchmark.image_root) / image["file_name"])
    objects = truth_instances(truth, image_id)
    columns = [picture_column("Ground truth", counted(objects, "object"), picture, objects)]
    for detector in benchmark.detectors:
        found = predicted_instances(
            widest(detector).predictions, truth, image_id, benchmark.score_threshold
        )
        columns.append(picture_column(detector.label, counted(found, "detection"), picture, found))
    return {"image_id": image_id, "score": score, "columns": columns}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _text(value: float | None, digits: int = 2) -> str:
    return number_text(_finite(value), digits)
