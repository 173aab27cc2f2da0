"""Writing a benchmark as report.json, report.md and a self-contained index.html."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from gradaug_det.benchmark.measured import (
    PrecisionCurves,
    ap_by_corruption,
    ap_by_epsilon,
    ap_by_severity,
    clean_ap,
    finite,
    precision_curves,
    tasks_of,
    time_ratio,
    widest,
)
from gradaug_det.benchmark.plots import (
    colour,
    corruption_plot,
    cost_plot,
    fgsm_plot,
    recall_plots,
)
from gradaug_det.benchmark.ranking import image_scores
from gradaug_det.benchmark.records import Benchmark, DetectorResult, WidthResult
from gradaug_det.benchmark.wording import summarise
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.evaluation.coco import CATEGORY_PREFIX, TASK_NAMES
from gradaug_det.evaluation.coco_data import (
    check_scorable,
    load_ground_truth,
    load_predictions,
)
from gradaug_det.reports.pictures import (
    MAX_DRAWN,
    predicted_instances,
    read_image,
    truth_instances,
)
from gradaug_det.reports.rendering import (
    counted,
    embedded,
    json_text,
    number_text,
    picture_column,
    plain,
    templates,
    write_files,
)
from gradaug_det.utils.environment import machine_line

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
        ConfigError: ``image_ids`` is empty.
        DataError: ground truth, predictions or images that cannot be used.
    """
    truth = load_ground_truth(benchmark.gt_json)
    benchmark = _loaded(benchmark, truth)
    best, worst = _ranked(benchmark, truth) if benchmark.image_root else ([], [])
    curves = {
        detector.label: {
            task: precision_curves(
                truth, widest(detector).predictions, task, benchmark.image_ids, detector.scoring
            )
            for task in tasks_of(detector)
        }
        for detector in benchmark.detectors
    }
    content = _content(benchmark, truth, curves, best, worst)
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
        "max_drawn": MAX_DRAWN,
    }
    html_view = {
        **view,
        "plots": embedded([cost_plot(benchmark), *recall_plots(benchmark, curves)]),
        "corruption_plots": embedded([corruption_plot(benchmark)]),
        "fgsm_plots": embedded([fgsm_plot(benchmark)]),
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


def _loaded(benchmark: Benchmark, truth: dict) -> Benchmark:
    """The benchmark with its images' ids, and with predictions read, checked and of them only."""
    known = [image["id"] for image in truth["images"]]
    ids = known if benchmark.image_ids is None else list(dict.fromkeys(benchmark.image_ids))
    if not ids:
        raise ConfigError("image_ids", "is empty; name at least one image, or None for all")
    if unknown := sorted(set(ids) - set(known)):
        raise DataError(
            f"image_ids has {len(unknown)} ids that {Path(benchmark.gt_json).name} does not have, "
            f"the first is {unknown[0]!r}"
        )
    chosen = set(ids)

    def loaded(result: WidthResult) -> WidthResult:
        predictions = load_predictions(result.predictions)
        check_scorable(predictions, truth, "bbox")
        return replace(result, predictions=[p for p in predictions if p["image_id"] in chosen])

    return replace(
        benchmark,
        image_ids=ids,
        detectors=[
            replace(detector, widths=[loaded(result) for result in detector.widths])
            for detector in benchmark.detectors
        ],
    )


def _content(
    benchmark: Benchmark,
    truth: dict,
    curves: Mapping[str, Mapping[str, PrecisionCurves]],
    best: list,
    worst: list,
) -> dict:
    """Everything numeric as JSON data: what ``report.json`` holds."""
    chosen = set(benchmark.image_ids)
    return plain(
        {
            "schema_version": SCHEMA_VERSION,
            "title": benchmark.title,
            "summary": summarise(benchmark),
            "dataset": {
                "name": benchmark.dataset,
                "annotation_file": Path(benchmark.gt_json).name,
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
            "pictures": {
                "score_threshold": benchmark.score_threshold,
                "best": [{"image_id": i, "f1": score} for i, score in best],
                "worst": [{"image_id": i, "f1": score} for i, score in worst],
            },
            "command": benchmark.command,
            "environment": benchmark.environment,
        }
    )


def _width_content(benchmark: Benchmark, detector: DetectorResult, result: WidthResult) -> dict:
    tasks = tasks_of(detector)
    return {
        "width": result.width,
        "metrics": result.metrics,
        "detections": len(result.predictions),
        "cost": {**asdict(result.cost), "time_ratio": time_ratio(benchmark, result)},
        "mPC": {task: result.mpc(task) for task in tasks},
        "rPC": {task: result.rpc(task) for task in tasks},
        "corruptions": result.corruptions,
        "AP_by_severity": {task: ap_by_severity(result, task) for task in tasks},
        "AP_by_corruption": {task: ap_by_corruption(result, task) for task in tasks},
        "fgsm": {f"{epsilon:g}": found for epsilon, found in result.fgsm.items()},
    }


def _column_label(detector: DetectorResult, result: WidthResult) -> str:
    if len(detector.widths) == 1 and result.width == 1:
        return detector.label
    return f"{detector.label}, width {result.width:g}"


def _ap_rows(benchmark: Benchmark) -> list[dict]:
    return [
        {
            "task": task,
            "metric": metric,
            "cells": [
                _text(result.metrics[task].get(metric) if task in tasks_of(detector) else None)
                for detector in benchmark.detectors
                for result in detector.widths
            ],
        }
        for task in _tasks(benchmark)
        for metric in _metrics(benchmark, task)
    ]


def _metrics(benchmark: Benchmark, task: str) -> list[str]:
    """COCO's numbers that any detector has, those of the categories left out."""
    found = dict.fromkeys(
        metric
        for detector in benchmark.detectors
        if task in tasks_of(detector)
        for metric in widest(detector).metrics[task]
    )
    return [metric for metric in found if not metric.startswith(CATEGORY_PREFIX)]


def _cost_rows(benchmark: Benchmark) -> list[dict]:
    results = [result for detector in benchmark.detectors for result in detector.widths]
    rows = [
        {"name": "parameters", "cells": [f"{r.cost.parameters:,}" for r in results]},
        {"name": "GFLOPs", "cells": [_text(r.cost.gflops) for r in results]},
        {"name": "ms an image", "cells": [_text(r.cost.milliseconds, 1) for r in results]},
        {"name": "time ratio", "cells": [_text(time_ratio(benchmark, r)) for r in results]},
        {"name": "peak MB", "cells": [_text(r.cost.peak_megabytes, 1) for r in results]},
    ]
    return [row for row in rows if any(cell != _text(None) for cell in row["cells"])]


def _corruption_rows(benchmark: Benchmark) -> list[dict]:
    """For each task: clean, mPC, rPC, each severity (mean over corruptions), each corruption."""
    rows = []
    for task in _tasks(benchmark):
        measured = [widest(d) if task in tasks_of(d) else None for d in benchmark.detectors]
        by_severity = [ap_by_severity(r, task) if r else {} for r in measured]
        by_corruption = [ap_by_corruption(r, task) if r else {} for r in measured]
        if not any(by_severity):
            continue
        columns = {
            "clean AP": [clean_ap(r, task) if r else None for r in measured],
            "mPC": [r.mpc(task) if r else None for r in measured],
            "rPC, %": [r.rpc(task) if r else None for r in measured],
        }
        for severity in sorted({s for found in by_severity for s in found}):
            columns[f"severity {severity}"] = [found.get(severity) for found in by_severity]
        for kind in dict.fromkeys(kind for found in by_corruption for kind in found):
            columns[kind.replace("_", " ")] = [found.get(kind) for found in by_corruption]
        rows += _robustness_rows(task, columns)
    return rows


def _fgsm_rows(benchmark: Benchmark) -> list[dict]:
    """For each task: clean, each epsilon."""
    rows = []
    for task in _tasks(benchmark):
        measured = [widest(d) if task in tasks_of(d) else None for d in benchmark.detectors]
        found = [ap_by_epsilon(r, task) if r else {} for r in measured]
        if not any(found):
            continue
        columns = {"clean AP": [clean_ap(r, task) if r else None for r in measured]}
        for epsilon in sorted({e for aps in found for e in aps}):
            columns[f"epsilon {epsilon:g}/255"] = [aps.get(epsilon) for aps in found]
        rows += _robustness_rows(task, columns)
    return rows


def _robustness_rows(task: str, columns: dict[str, list[float | None]]) -> list[dict]:
    return [
        {
            "task": task,
            "name": name,
            "cells": [_text(value) for value in values],
            "main": name == "clean AP",
        }
        for name, values in columns.items()
    ]


def _tasks(benchmark: Benchmark) -> list[str]:
    present = {task for detector in benchmark.detectors for task in tasks_of(detector)}
    return [task for task in TASK_NAMES if task in present]


def _bars(benchmark: Benchmark, names: dict[str, str]) -> dict[str, list[dict]]:
    """For each task: a row for each metric (key of ``names``) with every detector's number."""
    bars = {}
    for task in _tasks(benchmark):
        detectors = [d for d in benchmark.detectors if task in tasks_of(d)]
        rows = [
            {
                "category": title,
                "values": [
                    {"method": d.label, "value": finite(widest(d).metrics[task].get(metric))}
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
    """Metric -> category, by falling AP of the first detector."""
    first = benchmark.detectors[0]
    metrics = widest(first).metrics[tasks_of(first)[0]] if tasks_of(first) else {}
    names = [name for name in metrics if name.startswith(CATEGORY_PREFIX)]
    names.sort(key=lambda name: -(finite(metrics[name]) or 0.0))
    return {name: name.removeprefix(CATEGORY_PREFIX) for name in names}


def _ranked(benchmark: Benchmark, truth: dict) -> tuple[list, list]:
    """(image id, F1) of the best and of the worst images; no image is both."""
    predictions = widest(benchmark.detectors[0]).predictions
    scores = image_scores(truth, predictions, benchmark.image_ids, benchmark.score_threshold)
    ranked = sorted(scores.items(), key=lambda item: (item[1], item[0]))
    worst = ranked[: min(benchmark.num_pictures, (len(ranked) + 1) // 2)]
    best = sorted(ranked[len(worst) :], key=lambda item: (-item[1], item[0]))
    return best[: benchmark.num_pictures], worst


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


def _text(value: float | None, digits: int = 2) -> str:
    return number_text(finite(value), digits)
