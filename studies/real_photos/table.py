"""The study's one table: AP by width over seeds, against plain training; and its figures."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from gradaug_det.reports.rendering import MISSING, with_sign, write_files
from studies.real_photos.study import FOLDER, TASKS
from studies.report.statistics import agreement, mean_text
from studies.table3_mini.plots import Curve, Point, ap_plot

# By label: which columns of which rows are a curve's points.
WIDTH_CURVES = {
    "any width": [("any-late", "backbone", (1, 0.9, 0.75, 0.5))],
    "plain, matched": [("any-plain", "backbone, matched", (0.9, 0.75, 0.5))],
    "trained at that width alone": [
        ("any-plain", "backbone", (1,)),
        ("any-alone-0.75", "backbone", (0.75,)),
        ("any-alone-0.5", "backbone", (0.5,)),
    ],
}
# By figure and label: the arms whose points are joined.
COMPUTE_CURVES = {
    "compute": {
        "plain": ["any-plain"],
        "GradAug": ["added-labels", "added-short"],
        "any width": ["any-late"],
        "each batch twice": ["twice"],
        "weights averaged": ["ema"],
    },
    "compute_tenth": {
        "plain": ["tenth-plain"],
        "GradAug": ["tenth-added"],
        "any width": ["tenth-late"],
        "larger jitter": ["tenth-jitter"],
    },
}
_DRAWN = {arm for curves in COMPUTE_CURVES.values() for arms in curves.values() for arm in arms}


def make_rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the table's rows: an arm with one schedule, over its seeds, whose APs are means over
    all folds; or over the first one, ``folds`` 0, as long as no seed of the arm has all."""
    study = yaml.safe_load((FOLDER / "cells.yaml").read_text("utf-8"))
    order = list(study["arms"])
    # The arm that another one is compared with: the set's, or one from the same backbone.
    plain = {
        (s, a): {**study["sets"][s], **study["arms"][a]}["plain"]
        for s in study["sets"]
        for a in order
    }
    seeds: dict[tuple, dict] = defaultdict(lambda: defaultdict(dict))
    for result in results:
        own = result["settings"]
        seeds[own["set"], own["schedule"], own["arm"]][own["seed"]][own["fold"]] = result
    rows = {}
    for key, of_arm in seeds.items():
        whole = [[*of.values()] for of in of_arm.values() if len(of) == study["folds"]]
        first = [[folds[0]] for folds in of_arm.values() if 0 in folds]
        # Both rows where arms of either kind are compared with it, or the figure shows it.
        both = key[2] in _DRAWN or key[2] == plain[key[0], key[2]]
        for folds, found in (("all", whole), ("0", first if both or not whole else [])):
            for cut in found[0][0]["ap"] if found else ():
                rows[(*key, folds, cut)] = {"folds": folds, **_make_row(found, cut)}
    for (name, schedule, arm, folds, _), row in rows.items():
        reference = rows.get((name, schedule, plain[name, arm], folds, "backbone"))
        if reference:
            row["time"] = row["seconds"] / reference["seconds"]
            if arm != plain[name, arm]:
                row["minus plain"] = _differences(row["values"], reference["values"])
    shown = sorted(rows, key=lambda key: (*key[:2], key[3], order.index(key[2]), key[4]))
    return [rows[key] for key in shown]


def _make_row(seeds: list[list[dict]], cut: str) -> dict[str, Any]:
    used = [result for of_seed in seeds for result in of_seed]
    own, columns = used[0]["settings"], used[0]["ap"][cut]
    return {
        **{key: own[key] for key in ("set", "arm", "schedule")},
        **{"cut": cut, "steps": used[0]["steps"], "seeds": len(seeds)},
        "values": {k: [fmean(r["ap"][cut][k] for r in of) for of in seeds] for k in columns},
        "seconds": fmean(result["processor_seconds"] / result["steps"] for result in used),
        "peak_mib": max(result["peak_mib"] for result in used),
    }


def _differences(values: dict[str, list], plain: dict[str, list]) -> dict[str, list]:
    """Returns (difference, low, high) of the APs at full width; without spread the first alone."""
    found = {}
    for column in (f"{task} 1" for task in TASKS.values() if f"{task} 1" in values):
        own, others = values[column], plain[column]
        found[column] = [fmean(own) - fmean(others)]
        if min(len(own), len(others)) > 1:
            welch = agreement(own, others)
            found[column] += [welch.low, welch.high]
    return found


def write_table(results: list[dict[str, Any]], folder: Path) -> None:
    """Writes table.md, and table.json with every seed's values."""
    rows = make_rows(results)
    widths = max((result["settings"]["widths"] for result in results), key=len, default=[1])
    columns = [f"{task} {width:g}" for task in TASKS.values() for width in widths]
    differences = [f"{task} 1" for task in TASKS.values()]
    titles = ["set", "arm", "cut", "steps", "folds", "seeds", *columns]
    titles += [*(f"{column} minus plain" for column in differences), "time", "MiB"]
    lines = [titles, [*[":--"] * 3, *["--:"] * (len(titles) - 3)]]
    for row in rows:
        cells = [str(row[key]) for key in ("set", "arm", "cut", "steps", "folds", "seeds")]
        cells += [mean_text(row["values"].get(column, [])) for column in columns]
        cells += [_signed(row.get("minus plain", {}).get(column, [])) for column in differences]
        cells += [f"{row['time']:.2f}" if "time" in row else MISSING, f"{row['peak_mib']:.0f}"]
        lines.append(cells)
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    files = {"table.md": text, "table.json": json.dumps(rows, indent=1) + "\n"}
    for name in dict.fromkeys(row["set"] for row in rows):
        of_set = [row for row in rows if row["set"] == name]
        files[f"width_{name}.svg"] = draw_widths(of_set)
        for figure, curves in COMPUTE_CURVES.items():
            files[f"{figure}_{name}.svg"] = draw_compute(of_set, curves)
    write_files(folder, {name: text for name, text in files.items() if text})


def draw_widths(rows: list[dict[str, Any]]) -> str:
    """Returns SVG text, box AP by width, of a set's rows over all folds; empty without any."""
    used = [row for row in rows if row["folds"] == "all" and row["schedule"] == 1]
    found = {(row["arm"], row["cut"]): row["values"] for row in used}
    curves = []
    for colour, (label, parts) in enumerate(WIDTH_CURVES.items()):
        pairs = [(width, found.get((arm, cut), {})) for arm, cut, ws in parts for width in ws]
        aps = [(width, values.get(f"box {width:g}")) for width, values in pairs]
        curves.append(Curve(label, [Point(*one) for one in aps if one[1]], colour))
    return ap_plot(curves, "width of the backbone", "box AP, %")


def draw_compute(rows: list[dict[str, Any]], curves: dict[str, list[str]]) -> str:
    """Returns SVG text, box AP at full width by processor time, of a set's rows over fold 0; empty
    without those of two arms, or plain training's at schedule 1, whose time is the unit."""
    used = [row for row in rows if row["folds"] == "0" and row["cut"] == "backbone"]
    points: dict[str, list[Point]] = defaultdict(list)  # by arm
    plain = [r for r in used if r["arm"] in curves["plain"] and r["schedule"] == 1]
    for row in used if plain else []:
        time = row["steps"] * row["seconds"] / (plain[0]["steps"] * plain[0]["seconds"])
        points[row["arm"]].append(Point(time, row["values"]["box 1"]))
    drawn = []
    for colour, (label, arms) in enumerate(curves.items()):
        of_arms = sorted((one for arm in arms for one in points[arm]), key=lambda one: one.x)
        drawn.append(Curve(label, of_arms, colour))
    if sum(bool(curve.points) for curve in drawn) < 2:
        return ""
    label = "processor time of the training, 1: plain, schedule 1"
    return ap_plot(drawn, label, "box AP, %", bottom=None)


def _signed(values: list[float]) -> str:
    difference, *interval = [with_sign(value, 1) for value in values] or [""]
    return f"{difference} [{', '.join(interval)}]" if interval else difference
