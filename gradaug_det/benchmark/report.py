"""Writing a benchmark as report.json, report.md and a self-contained index.html."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from gradaug_det.benchmark.plots import (
    colour_at,
    corruption_plot,
    cost_plot,
    fgsm_plot,
    recall_plots,
)
from gradaug_det.benchmark.ranking import image_scores
from gradaug_det.benchmark.records import Benchmark, DetectorResult, WidthResult
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.evaluation.coco import (
    CATEGORY_PREFIX,
    TASK_NAMES,
    PrecisionCurves,
    precision_curves,
)
from gradaug_det.evaluation.coco_data import check_scorable, load_predictions
from gradaug_det.reports.pictures import (
    MAX_DRAWN,
    predicted_instances,
    read_image,
    truth_instances,
)
from gradaug_det.reports.rendering import (
    MISSING,
    count_items,
    draw_column,
    embed_plots,
    format_json,
    format_number,
    load_templates,
    to_json_data,
    write_files,
)
from gradaug_det.utils.environment import machine_line

SCHEMA_VERSION = 2  # of report.json; raised when a key changes its meaning or goes away
_SIZES = {"APs": "small", "APm": "medium", "APl": "large"}


def write_benchmark(out_dir: str | Path, benchmark: Benchmark) -> Path:
    """Writes ``report.json``, ``report.md`` and ``index.html`` into a folder.

    All three are made before the first is written, and each replaces its predecessor in one step.

    Args:
        out_dir: folder, created if needed.
        benchmark: the records of what was measured.

    Returns:
        Path of ``index.html``, which needs no other file and no network.

    Raises:
        ConfigError: ``image_ids`` is empty.
        DataError: ground truth, predictions or images that cannot be used.
    """
    benchmark = _load_predictions(benchmark)
    ranked = _rank_images(benchmark)
    curves = {detector.label: _curves(benchmark, detector) for detector in benchmark.detectors}
    content = _content(benchmark, curves, ranked)
    view = {
        **content,
        "machine": machine_line(benchmark.environment),
        "columns": [
            {"name": detector.label, "label": _column_label(detector, result)}
            for detector in benchmark.detectors
            for result in detector.widths
        ],
        "ap_rows": _ap_rows(benchmark),
        "cost_rows": _cost_rows(benchmark),
        "corruption_rows": _changed_rows(benchmark, _corruption_values),
        "fgsm_rows": _changed_rows(benchmark, _fgsm_values),
        "legend_items": [{"name": d.label, "label": d.label} for d in benchmark.detectors],
        "colours": {d.label: colour_at(i) for i, d in enumerate(benchmark.detectors)},
        "tasks": TASK_NAMES,
        "max_drawn": MAX_DRAWN,
    }
    html_view = {
        **view,
        "plots": embed_plots([cost_plot(benchmark), *recall_plots(benchmark, curves)]),
        "corruption_plots": embed_plots([corruption_plot(benchmark)]),
        "fgsm_plots": embed_plots([fgsm_plot(benchmark)]),
        "bars": [
            ("AP by size of the objects", _bars(benchmark, _SIZES)),
            ("AP by category", _bars(benchmark, _categories(benchmark))),
        ],
        "picture_groups": [
            {"title": title, "rows": [_picture_row(benchmark, **one) for one in ranked[title]]}
            for title in ("worst", "best")
            if ranked[title]
        ],
    }
    environment = load_templates()
    write_files(
        out_dir,
        {
            "report.json": format_json(content),
            "report.md": environment.get_template("benchmark.md.j2").render(view),
            "index.html": environment.get_template("benchmark.html.j2").render(html_view),
        },
    )
    return Path(out_dir) / "index.html"


def _load_predictions(benchmark: Benchmark) -> Benchmark:
    """The benchmark with its images' ids, and with predictions read, checked and of them only."""
    data = benchmark.data
    known = [image["id"] for image in data.truth["images"]]
    ids = known if benchmark.image_ids is None else list(dict.fromkeys(benchmark.image_ids))
    if not ids:
        raise ConfigError("image_ids", "is empty; name at least one image, or None for all")
    if unknown := sorted(set(ids) - set(known)):
        raise DataError(
            f"image_ids has {len(unknown)} ids that {Path(data.origin).name} does not have, the "
            f"first is {unknown[0]!r}"
        )
    chosen = set(ids)

    def load(result: WidthResult) -> WidthResult:
        predictions = load_predictions(result.predictions)
        check_scorable(predictions, data.truth, "bbox")
        return replace(result, predictions=[p for p in predictions if p["image_id"] in chosen])

    detectors = [
        replace(d, widths=[load(result) for result in d.widths]) for d in benchmark.detectors
    ]
    return replace(benchmark, image_ids=ids, detectors=detectors)


def _curves(benchmark: Benchmark, detector: DetectorResult) -> dict[str, PrecisionCurves]:
    scoring = detector.scoring
    return {
        task: precision_curves(
            benchmark.data.truth,
            detector.widest.predictions,
            task,
            image_ids=benchmark.image_ids,
            max_detections=scoring.max_detections,
            sigmas=scoring.sigmas,
        )
        for task in detector.tasks
    }


def _content(
    benchmark: Benchmark,
    curves: Mapping[str, Mapping[str, PrecisionCurves]],
    ranked: Mapping[str, list[dict]],
) -> dict:
    """Everything numeric as JSON data: the content of ``report.json``."""
    truth, chosen = benchmark.data.truth, set(benchmark.image_ids)
    return to_json_data(
        {
            "schema_version": SCHEMA_VERSION,
            "title": benchmark.title,
            "dataset": {
                "name": benchmark.data.name,
                "annotation_file": Path(benchmark.data.origin).name,
                "images": len(chosen),
                "of_images": len(truth["images"]),
                "objects": sum(a["image_id"] in chosen for a in truth["annotations"]),
                "categories": [category["name"] for category in truth["categories"]],
            },
            "detectors": [
                {
                    **{k: getattr(d, k) for k in ("label", "framework", "config", "weights")},
                    "scoring": asdict(d.scoring),
                    "widths": [_width_content(benchmark, d, result) for result in d.widths],
                    "precision_recall": curves[d.label],
                }
                for d in benchmark.detectors
            ],
            "pictures": {"score_threshold": benchmark.score_threshold, **ranked},
            "command": benchmark.command,
            "environment": benchmark.environment,
        }
    )


def _width_content(benchmark: Benchmark, detector: DetectorResult, result: WidthResult) -> dict:
    return {
        "width": result.width,
        "metrics": result.metrics,
        "detections": len(result.predictions),
        "cost": {**asdict(result.cost), "time_ratio": benchmark.time_ratio(result)},
        "mPC": {task: result.mpc(task) for task in detector.tasks},
        "rPC": {task: result.rpc(task) for task in detector.tasks},
        "corruptions": result.corruptions,
        "AP_by_severity": {task: result.ap_by_severity(task) for task in detector.tasks},
        "AP_by_corruption": {task: result.ap_by_corruption(task) for task in detector.tasks},
        "fgsm": {f"{epsilon:g}": found for epsilon, found in result.fgsm.items()},
    }


def _column_label(detector: DetectorResult, result: WidthResult) -> str:
    if len(detector.widths) == 1 and result.width == 1:
        return detector.label
    return f"{detector.label}, width {result.width:g}"


def _ap_rows(benchmark: Benchmark) -> list[dict]:
    """A row for each task and number of COCO that any detector has, but for the categories'."""
    rows = []
    for task in benchmark.tasks:
        detectors = [d for d in benchmark.detectors if task in d.tasks]
        names = dict.fromkeys(name for d in detectors for name in d.widest.metrics[task])
        for name in names:
            if not name.startswith(CATEGORY_PREFIX):
                values = [
                    result.metric(task, name) if detector in detectors else None
                    for detector in benchmark.detectors
                    for result in detector.widths
                ]
                rows.append(_row(f"{TASK_NAMES[task]} {name}", values, main=name == "AP"))
    return rows


def _cost_rows(benchmark: Benchmark) -> list[dict]:
    results = [result for detector in benchmark.detectors for result in detector.widths]
    costs = [result.cost for result in results]
    rows = [
        {"name": "parameters", "cells": [f"{cost.parameters:,}" for cost in costs], "main": False},
        _row("GFLOPs", [cost.gflops for cost in costs]),
        _row("ms an image", [cost.milliseconds for cost in costs], digits=1),
        _row("time ratio", [benchmark.time_ratio(result) for result in results]),
        _row("peak MB", [cost.peak_megabytes for cost in costs], digits=1),
    ]
    return [row for row in rows if set(row["cells"]) != {MISSING}]


def _changed_rows(
    benchmark: Benchmark, values_of: Callable[[WidthResult, str], dict[str, float | None]]
) -> list[dict]:
    """Rows of a table with a column for each detector, at its largest width.

    Args:
        values_of: names of rows -> AP of a task; beside the clean AP, if anything was measured.
    """
    rows = []
    for task in benchmark.tasks:
        columns = [
            values_of(d.widest, task) if task in d.tasks else {} for d in benchmark.detectors
        ]
        names = list(dict.fromkeys(name for column in columns for name in column))
        for name in names if len(names) > 1 else ():
            values = [column.get(name) for column in columns]
            rows.append(_row(f"{TASK_NAMES[task]}, {name}", values, main=name == "clean AP"))
    return rows


def _corruption_values(result: WidthResult, task: str) -> dict[str, float | None]:
    values = {"clean AP": result.metric(task)}
    if severities := result.ap_by_severity(task):
        values |= {"mPC": result.mpc(task), "rPC, %": result.rpc(task)}
        values |= {f"severity {severity}": ap for severity, ap in severities.items()}
        by_kind = result.ap_by_corruption(task)
        values |= {kind.replace("_", " "): ap for kind, ap in by_kind.items()}
    return values


def _fgsm_values(result: WidthResult, task: str) -> dict[str, float | None]:
    by_epsilon = result.ap_by_epsilon(task)
    return {
        "clean AP": result.metric(task),
        **{f"epsilon {epsilon:g}/255": ap for epsilon, ap in by_epsilon.items()},
    }


def _row(name: str, values: list[float | None], digits: int = 2, main: bool = False) -> dict:
    return {"name": name, "cells": [format_number(value, digits) for value in values], "main": main}


def _bars(benchmark: Benchmark, names: dict[str, str]) -> dict[str, list[dict]]:
    """For each task: a row for each metric (key of ``names``) with every detector's number."""
    bars = {}
    for task in benchmark.tasks:
        detectors = [d for d in benchmark.detectors if task in d.tasks]
        rows = [
            {
                "category": title,
                "values": [
                    {"method": d.label, "value": d.widest.metric(task, name)} for d in detectors
                ],
            }
            for name, title in names.items()
        ]
        bars[task] = [row for row in rows if any(v["value"] is not None for v in row["values"])]
    return {task: rows for task, rows in bars.items() if rows}


def _categories(benchmark: Benchmark) -> dict[str, str]:
    """Metric -> category, by falling AP of the first detector."""
    first = benchmark.detectors[0]
    task = next(iter(first.tasks), None)
    names = [n for n in first.widest.metrics.get(task, {}) if n.startswith(CATEGORY_PREFIX)]
    names.sort(key=lambda name: -(first.widest.metric(task, name) or 0.0))
    return {name: name.removeprefix(CATEGORY_PREFIX) for name in names}


def _rank_images(benchmark: Benchmark) -> dict[str, list[dict]]:
    """The ``best`` and the ``worst`` images with their F1; no image is both."""
    scores = {}
    if benchmark.data.folder is not None:
        scores = image_scores(
            benchmark.data.truth,
            benchmark.detectors[0].widest.predictions,
            benchmark.image_ids,
            benchmark.score_threshold,
        )
    ranked = sorted(scores, key=lambda image_id: (scores[image_id], image_id))
    worst = ranked[: min(benchmark.num_pictures, (len(ranked) + 1) // 2)]
    best = sorted(ranked[len(worst) :], key=lambda image_id: (-scores[image_id], image_id))
    return {
        name: [{"image_id": image_id, "f1": scores[image_id]} for image_id in ids]
        for name, ids in (("best", best[: benchmark.num_pictures]), ("worst", worst))
    }


def _picture_row(benchmark: Benchmark, image_id: int, f1: float) -> dict:
    """Ground truth, then each detector's detections."""
    truth, threshold = benchmark.data.truth, benchmark.score_threshold
    image = next(image for image in truth["images"] if image["id"] == image_id)
    picture = read_image(benchmark.data.folder / image["file_name"])
    objects = truth_instances(truth, image_id)
    columns = [draw_column("Ground truth", count_items(objects, "object"), picture, objects)]
    for detector in benchmark.detectors:
        found = predicted_instances(detector.widest.predictions, truth, image_id, threshold)
        columns.append(draw_column(detector.label, count_items(found, "detection"), picture, found))
    return {"image_id": image_id, "f1": f1, "columns": columns}
