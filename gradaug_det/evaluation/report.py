"""Writing a comparison of runs as report.json, report.md and a self-contained index.html."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradaug_det.evaluation.coco_data import check_scorable, load_ground_truth, load_predictions
from gradaug_det.evaluation.comparison import TASK_NAMES, Method, group_methods
from gradaug_det.evaluation.content import (
    category_bars,
    number_text,
    report_content,
    table_rows,
)
from gradaug_det.evaluation.environment import machine_line
from gradaug_det.evaluation.pictures import (
    Shown,
    choose_images,
    draw_instances,
    predicted_instances,
    read_image,
    truth_instances,
)
from gradaug_det.evaluation.plots import METHOD_COLOURS, training_plots
from gradaug_det.evaluation.records import Report, RunRecord
from gradaug_det.files import atomic_path

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
    ground_truth = load_ground_truth(report.gt_json)
    methods = group_methods(report.runs, report.baseline_method)
    images = choose_images(ground_truth, report.num_pictures) if report.image_root else []
    content = report_content(report, ground_truth, methods)
    content["pictures"]["image_ids"] = [image["id"] for image in images]

    environment = _jinja()
    view = {
        **content,
        "machine": machine_line(report.environment),
        "table": table_rows(methods),
        "colours": {
            method.name: METHOD_COLOURS[position % len(METHOD_COLOURS)]
            for position, method in enumerate(methods)
        },
        "bars": category_bars(methods),
        "tasks": TASK_NAMES,
        "several_seeds": any(len(method.runs) > 1 for method in methods),
    }
    html_view = {
        **view,
        "plots": [
            {**asdict(plot), "source": _data_url("image/svg+xml", plot.svg.encode())}
            for plot in training_plots(methods)
        ],
        "picture_rows": _picture_rows(report, ground_truth, methods, images),
    }
    files = {
        "report.json": _json_text(content),
        "report.md": environment.get_template("report.md.j2").render(view),
        "index.html": environment.get_template("report.html.j2").render(html_view),
    }
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        _write_atomically(out_dir / name, text)
    return out_dir / "index.html"


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
        columns = [_column("Ground truth", _count(truth, "object"), picture, truth)]
        for method in methods:
            if method.name not in results:
                continue
            found = predicted_instances(
                results[method.name], ground_truth, image["id"], report.score_threshold
            )
            note = f"{_count(found, 'detection')} ≥ {report.score_threshold:g}"
            columns.append(_column(method.label, note, picture, found))
        rows.append({"image_id": image["id"], "columns": columns})
    return rows


def _column(caption: str, note: str, picture: Any, instances: Sequence[Shown]) -> dict:
    drawn = draw_instances(picture, instances)
    buffer = io.BytesIO()
    # A tenth of the size of PNG for photographs, at a quality where thin outlines stay clean.
    drawn.save(buffer, format="JPEG", quality=90, subsampling=0)
    return {
        "caption": caption,
        "note": note,
        "alt": f"{caption}: {', '.join(shown.label for shown in instances) or 'nothing'}",
        "width": drawn.width,
        "height": drawn.height,
        "source": _data_url("image/jpeg", buffer.getvalue()),
    }


def _count(items: Sequence, noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _json_text(content: dict) -> str:
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    # One point of a curve a line instead of four.
    return re.sub(r"\[\n\s*([^\s\[\],]+),\n\s*([^\s\[\],]+)\n\s*\]", r"[\1, \2]", text) + "\n"


def _data_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _jinja() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number_text
    return environment


def _write_atomically(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")
