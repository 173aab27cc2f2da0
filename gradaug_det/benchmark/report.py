"""Writing a benchmark as report.json, report.md and a self-contained index.html."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradaug_det.benchmark import plots
from gradaug_det.benchmark.ranking import image_scores
from gradaug_det.benchmark.records import Benchmark, DetectorResult, WidthResult
from gradaug_det.evaluation.coco import CATEGORY_PREFIX, TASK_NAMES, precision_curves
from gradaug_det.reports import pictures, rendering
from gradaug_det.reports.rendering import count_items, embed_plots, format_number
from gradaug_det.utils.environment import machine_line

SCHEMA_VERSION = 2  # of report.json; raised when a key changes its meaning or goes away
_COSTS = {"GFLOPs": "gflops", "ms": "milliseconds", "MB": "peak_megabytes"}


def write_benchmark(out_dir: str | Path, benchmark: Benchmark) -> Path:
    """Writes ``report.json``, ``report.md`` and ``index.html`` into a folder.

    All three are made before the first is written, and each replaces its predecessor in one step.

    Args:
        out_dir: folder, created if needed.
        benchmark: the records of what was measured.

    Returns:
        Path of ``index.html``, which needs no other file and no network.

    Raises:
        DataError: an image cannot be read.
    """
    # Everything that can fail comes before the first file: an earlier report stays whole.
    curves = {detector.label: _curves(benchmark, detector) for detector in benchmark.detectors}
    ranked = _rank_images(benchmark)
    content = _content(benchmark, curves, ranked)
    view = {**content, **_tables(benchmark), "machine": machine_line(benchmark.environment)}
    html_view = {
        **view,
        "tasks": TASK_NAMES,
        "max_drawn": pictures.MAX_DRAWN,
        "cost_plots": embed_plots([plots.cost_plot(benchmark)]),
        "changes_plots": embed_plots(
            [plots.corruption_plot(benchmark), plots.fgsm_plot(benchmark)]
        ),
        "recall_plots": embed_plots(plots.recall_plots(benchmark, curves)),
        "bars": _bars(benchmark),
        "pictures_of": {
            title: [_picture_row(benchmark, **one) for one in ranked[title]]
            for title in ("typical", "worst", "best")
        },
    }
    environment = rendering.load_templates()
    files = {
        "report.json": rendering.format_json(content),
        "report.md": environment.get_template("benchmark.md.j2").render(view),
        "index.html": environment.get_template("benchmark.html.j2").render(html_view),
    }
    rendering.write_files(out_dir, files)
    return Path(out_dir) / "index.html"


def _curves(benchmark: Benchmark, detector: DetectorResult) -> dict[str, Any]:
    truth, found = benchmark.data.truth, detector.widest.predictions
    settings = {"image_ids": benchmark.image_ids, **detector.scoring.limits}
    return {task: precision_curves(truth, found, task, **settings) for task in detector.tasks}


def _content(
    benchmark: Benchmark, curves: Mapping[str, Any], ranked: Mapping[str, list[dict]]
) -> dict:
    # Everything numeric as JSON data: the content of `report.json`.
    truth, chosen = benchmark.data.truth, set(benchmark.image_ids)
    return rendering.to_json_data(
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
        "matched": result.matched,
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


def _tables(benchmark: Benchmark) -> dict[str, Any]:
    detectors = list(enumerate(benchmark.detectors))

    def of_widths(numbers: Callable[..., dict[str, str]]) -> dict:
        rows = [[(r.name, numbers(benchmark, d, r)) for r in d.widths] for _, d in detectors]
        return _table(benchmark, rows)

    return {
        "main": of_widths(_main),
        "full": of_widths(_full),
        "changes": _table(
            benchmark, [[(TASK_NAMES[t], _changes(d, t)) for t in d.tasks] for _, d in detectors]
        ),
        "legend_items": [{"name": d.label, "label": d.label} for _, d in detectors],
        "colours": {d.label: plots.colour_at(i) for i, d in detectors},
        "keys": {d.label: f"{plots.colour_at(i)};{plots.shape_at(i)[1]}" for i, d in detectors},
    }


def _table(benchmark: Benchmark, rows: Sequence[Sequence[tuple[str, Mapping[str, str]]]]) -> dict:
    # A detector's rows: a name, and column -> number; one may lack columns that others have.
    columns = dict.fromkeys(name for group in rows for _, cells in group for name in cells)
    labels = [detector.label for detector in benchmark.detectors]
    return {"columns": list(columns), "groups": list(zip(labels, rows, strict=True))}


def _main(benchmark: Benchmark, detector: DetectorResult, result: WidthResult) -> dict[str, str]:
    aps = {t: result.metric(t) if t in detector.tasks else None for t in benchmark.tasks}
    cells = {f"{TASK_NAMES[task]} AP": format_number(ap) for task, ap in aps.items()}
    for name, field in _COSTS.items():
        if (cost := getattr(result.cost, field)) is not None:
            # Costs range from tenths to thousands: about three digits of each.
            cells[name] = format_number(cost, 2 if cost < 10 else 1 if cost < 100 else 0)
    return cells


def _full(benchmark: Benchmark, detector: DetectorResult, result: WidthResult) -> dict[str, str]:
    values: dict[str, float | None] = {}
    for task in detector.tasks:
        for name in result.metrics[task]:
            if not name.startswith(CATEGORY_PREFIX):
                values[f"{TASK_NAMES[task]} {name}"] = result.metric(task, name)
        changed = {f"severity {s}": ap for s, ap in result.ap_by_severity(task).items()}
        for name, ap in {**changed, **result.ap_by_corruption(task)}.items():
            values[f"{TASK_NAMES[task]} AP, {name.replace('_', ' ')}"] = ap
    if (ratio := benchmark.time_ratio(result)) is not None:
        values["time ratio"] = ratio
    cells = {name: format_number(value) for name, value in values.items()}
    return {**cells, "parameters": f"{result.cost.parameters:,}"}


def _changes(detector: DetectorResult, task: str) -> dict[str, str]:
    # Nothing, where nothing was changed or there is nothing to find.
    result = detector.widest
    aps = {"mPC": result.mpc(task), "rPC, %": result.rpc(task)}
    aps |= {f"FGSM {epsilon:g}": ap for epsilon, ap in result.ap_by_epsilon(task).items()}
    known = {name: format_number(ap) for name, ap in aps.items() if ap is not None}
    return {"AP": format_number(result.metric(task)), **known} if known else {}


def _bars(benchmark: Benchmark) -> dict[str, list[dict]]:
    # For each task: categories, by falling AP of the first detector, with every detector's AP.
    bars: dict[str, list[dict]] = {}
    for task in benchmark.tasks:
        detectors = [d for d in benchmark.detectors if task in d.tasks]
        first = detectors[0].widest
        names = [name for name in first.metrics[task] if name.startswith(CATEGORY_PREFIX)]
        for name in sorted(names, key=lambda n: -(first.metric(task, n) or 0)):
            values = [{"method": d.label, "value": d.widest.metric(task, name)} for d in detectors]
            if any(one["value"] is not None for one in values):
                row = {"category": name.removeprefix(CATEGORY_PREFIX), "values": values}
                bars.setdefault(task, []).append(row)
    return bars


def _rank_images(benchmark: Benchmark) -> dict[str, list[dict]]:
    # The `best` and the `worst` images, and the `typical` one with the median F1; each once.
    data, scores = benchmark.data, {}
    if data.folder is not None:
        predictions = benchmark.detectors[0].widest.predictions
        threshold = benchmark.score_threshold
        scores = image_scores(data.truth, predictions, benchmark.image_ids, threshold)
    ranked = sorted(scores, key=lambda image_id: (scores[image_id], image_id))
    # Of few images, half are worst: a picture is shown once.
    worst = ranked[: min(benchmark.num_pictures, (len(ranked) + 1) // 2)]
    best = sorted(ranked[len(worst) :], key=lambda image_id: (-scores[image_id], image_id))
    best = best[: benchmark.num_pictures]
    typical = [one for one in ranked[len(ranked) // 2 :][:1] if one not in (*worst, *best)]
    return {
        name: [{"image_id": image_id, "f1": scores[image_id]} for image_id in ids]
        for name, ids in (("typical", typical), ("best", best), ("worst", worst))
    }


def _picture_row(benchmark: Benchmark, image_id: int, f1: float) -> dict:
    # Ground truth, then each detector's detections.
    truth, threshold = benchmark.data.truth, benchmark.score_threshold
    image = next(image for image in truth["images"] if image["id"] == image_id)
    picture = pictures.read_image(benchmark.data.folder / image["file_name"])
    objects = pictures.truth_instances(truth, image_id)
    shown = [("Ground truth", "object", objects)]
    for detector in benchmark.detectors:
        found = detector.widest.predictions
        found = pictures.predicted_instances(found, truth, image_id, threshold)
        shown.append((detector.label, "detection", found))
    columns = [
        rendering.draw_column(caption, count_items(instances, noun), picture, instances)
        for caption, noun, instances in shown
    ]
    return {"image_id": image_id, "f1": f1, "columns": columns}
