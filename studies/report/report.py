"""Writing a comparison of runs as report.json, report.md and a self-contained index.html."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradaug_det.evaluation.coco import TASK_NAMES
from gradaug_det.evaluation.coco_data import CocoData, check_scorable, load_predictions
from gradaug_det.reports.pictures import (
    predicted_instances,
    read_image,
    truth_instances,
)
from gradaug_det.reports.plots import METHOD_COLOURS
from gradaug_det.reports.rendering import (
    count_items,
    draw_column,
    embed_plots,
    format_json,
    load_templates,
    write_files,
)
from gradaug_det.utils.environment import machine_line
from studies.report.comparison import Method, group_methods
from studies.report.content import (
    category_bars,
    methods_of,
    report_content,
    table_rows,
)
from studies.report.plots import training_plots
from studies.report.records import Report, RunRecord

TEMPLATES = Path(__file__).parent / "templates"
__all__ = ["Report", "RunRecord", "write_report"]


def write_report(out_dir: str | Path, report: Report) -> Path:
    """Write ``report.json``, ``report.md`` and ``index.html`` into a folder.

    All three are made before the first is written, and each replaces its predecessor in one step:
    a failure leaves an earlier report as it was.

    Args:
        out_dir: folder, created if needed.
        report: what to write.

    Returns:
        Path of ``index.html``, which needs no other file and no network.

    Raises:
        DataError: ground truth, predictions or images that cannot be used.
    """
    ground_truth = CocoData.read(report.gt_json).truth
    methods = group_methods(report.runs, report.baseline_method)
    images = choose_images(ground_truth, report.num_pictures) if report.image_root else []
    content = report_content(report, ground_truth, methods)
    content["pictures"]["image_ids"] = [image["id"] for image in images]

    html_view = {
        **_tables(content),
        "colours": {
            method.name: METHOD_COLOURS[position % len(METHOD_COLOURS)]
            for position, method in enumerate(methods)
        },
        "bars": category_bars(methods),
        "plots": embed_plots(training_plots(methods)),
        "picture_rows": _picture_rows(report, ground_truth, methods, images),
    }
    files = {
        "report.json": format_json(content),
        "report.md": report_markdown(content),
        "index.html": load_templates(TEMPLATES).get_template("report.html.j2").render(html_view),
    }
    write_files(out_dir, files)
    return Path(out_dir) / "index.html"


def report_markdown(content: Mapping[str, Any]) -> str:
    """Returns the ``report.md`` of what a ``report.json`` holds."""
    return load_templates(TEMPLATES).get_template("report.md.j2").render(_tables(content))


def _tables(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what both templates show: the content and its tables as text."""
    methods = methods_of(content)
    return {
        "agreements": [],  # reports of before there were any
        **content,
        "machine": machine_line(content["environment"]),
        "table": table_rows(methods),
        "tasks": TASK_NAMES,
        "several_seeds": any(len(method.runs) > 1 for method in methods),
    }


def _picture_rows(
    report: Report, ground_truth: dict, methods: Sequence[Method], images: Sequence[dict]
) -> list[dict]:
    """For each image: the ground truth, then the first seed of every method that has results."""
    results = {}
    for method in methods:
        run = next((run for run in method.runs if run.predictions is not None), None)
        if run is not None:
            results[method.name] = load_predictions(run.predictions)
            check_scorable(results[method.name], ground_truth, "bbox")
            with_masks = [p for p in results[method.name] if "segmentation" in p]
            check_scorable(with_masks, ground_truth, "segm")
    rows = []
    for image in images:
        picture = read_image(Path(report.image_root) / image["file_name"])
        truth = truth_instances(ground_truth, image["id"])
        columns = [draw_column("Ground truth", count_items(truth, "object"), picture, truth)]
        for method in methods:
            if method.name not in results:
                continue
            found = predicted_instances(
                results[method.name], ground_truth, image["id"], report.score_threshold
            )
            note = f"{count_items(found, 'detection')} ≥ {report.score_threshold:g}"
            columns.append(draw_column(method.label, note, picture, found))
        rows.append({"image_id": image["id"], "columns": columns})
    return rows


def choose_images(truth: dict, count: int) -> list[dict]:
    """Spreads ``count`` images evenly over the dataset, preferring those with several objects.

    The choice depends on the ground truth alone, so no run can look better by it.
    """
    objects = Counter(a["image_id"] for a in truth["annotations"] if not a.get("iscrowd"))
    images = sorted(truth["images"], key=lambda image: image["id"])
    candidates = [image for image in images if objects[image["id"]] >= 2]
    if len(candidates) < count:
        candidates = [image for image in images if objects[image["id"]] >= 1]
    count = min(count, len(candidates))
    return [candidates[(2 * i + 1) * len(candidates) // (2 * count)] for i in range(count)]
