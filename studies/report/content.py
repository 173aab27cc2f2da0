"""The numbers of a report: as JSON data, and as the rows of its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradaug_det.evaluation.coco import CATEGORY_PREFIX, TASK_NAMES
from gradaug_det.reports.rendering import MISSING, format_number, to_json_data, with_sign
from studies.report.comparison import (
    TABLE_METRICS,
    Method,
    difference,
    group_methods,
    step_time_ratio,
)
from studies.report.records import Report, RunRecord

SCHEMA_VERSION = 2  # of report.json; raised when a key changes its meaning or goes away


def report_content(report: Report, ground_truth: dict, methods: Sequence[Method]) -> dict:
    """Everything numeric of a report as JSON data: what ``report.json`` holds.

    Args:
        report: what was run.
        ground_truth: of :attr:`gradaug_det.evaluation.coco_data.CocoData.truth`.
        methods: from :func:`studies.report.comparison.group_methods`.

    Returns:
        A dict with ``schema_version``; numbers that do not exist are None, paths are file names.
    """
    baseline = methods[0]
    return to_json_data(
        {
            "schema_version": SCHEMA_VERSION,
            "title": report.title,
            "introduction": report.introduction,
            "dataset": {
                "name": report.dataset,
                "annotation_file": Path(report.gt_json).name
                if isinstance(report.gt_json, (str, Path))
                else None,
                "images": len(ground_truth["images"]),
                "objects": len(ground_truth["annotations"]),
                "categories": [category["name"] for category in ground_truth["categories"]],
            },
            "baseline": baseline.name,
            "methods": [_method_content(method) for method in methods],
            "comparisons": [_comparison_content(method, baseline) for method in methods[1:]],
            "agreements": [
                {"what": what, **asdict(found)} for what, found in report.agreements.items()
            ],
            "runs": [
                {**asdict(run), "seconds_per_iteration": run.seconds_per_iteration}
                for run in report.runs
            ],
            "pictures": {"score_threshold": report.score_threshold, "image_ids": []},
            "commands": list(report.commands),
            "environment": report.environment,
        }
    )


def methods_of(content: Mapping[str, Any]) -> list[Method]:
    """Returns the methods that a ``report.json`` holds, the baseline first."""
    known = RunRecord.__dataclass_fields__
    runs = [RunRecord(**{k: v for k, v in r.items() if k in known}) for r in content["runs"]]
    return group_methods(runs, content["baseline"])


def _method_content(method: Method) -> dict:
    return {
        "name": method.name,
        "label": method.label,
        "runs": [run.name for run in method.runs],
        "seconds_per_iteration": method.seconds_per_iteration,
        "metrics": {
            task: {
                metric: {"mean": method.mean(task, metric), "std": method.spread(task, metric)}
                for metric in _metric_names([method], task)
            }
            for task in _tasks([method])
        },
    }


def _comparison_content(method: Method, baseline: Method) -> dict:
    return {
        "method": method.name,
        "baseline": baseline.name,
        "step_time_ratio": step_time_ratio(method, baseline),
        "difference": {
            task: {
                metric: difference(method, baseline, task, metric)
                for metric in _metric_names([method, baseline], task)
            }
            for task in _tasks([method, baseline])
        },
    }


def table_rows(methods: Sequence[Method]) -> list[dict]:
    """Rows of the AP table as text: the baseline's number, then number and difference of others."""
    rows = []
    for task in _tasks(methods):
        for metric in TABLE_METRICS:
            if not any(metric in _metric_names([method], task) for method in methods):
                continue
            cells = []
            for position, method in enumerate(methods):
                cell = {
                    "value": format_number(method.mean(task, metric)),
                    "spread": format_number(method.spread(task, metric)),
                }
                if position:
                    delta = difference(method, methods[0], task, metric)
                    cell["difference"] = MISSING if delta is None else with_sign(delta)
                    cell["better"] = delta is not None and delta > 0
                cells.append(cell)
            rows.append({"task": task, "metric": metric, "cells": cells})
    return rows


def category_bars(methods: Sequence[Method]) -> dict[str, list[dict]]:
    """For each task: categories by falling AP of the baseline, with each method's AP."""
    bars = {}
    for task in _tasks(methods):
        names = dict.fromkeys(name for method in methods for name in method.categories(task))
        rows = [
            {
                "category": name,
                "values": [
                    {"method": method.name, "value": method.mean(task, f"{CATEGORY_PREFIX}{name}")}
                    for method in methods
                ],
            }
            for name in names
        ]
        rows.sort(key=lambda row: -(row["values"][0]["value"] or 0.0))
        if rows:
            bars[task] = rows
    return bars


def _tasks(methods: Sequence[Method]) -> list[str]:
    present = {task for method in methods for run in method.runs for task in run.metrics}
    return [task for task in TASK_NAMES if task in present]


def _metric_names(methods: Sequence[Method], task: str) -> list[str]:
    return list(
        dict.fromkeys(
            name for method in methods for run in method.runs for name in run.metrics.get(task, {})
        )
    )
