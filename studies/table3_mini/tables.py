"""The study of table 3 in small as Markdown and plots, from the results' files alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradaug_det.benchmark.records import relative_performance
from gradaug_det.evaluation.coco import IOU_TYPES, TASK_NAMES
from gradaug_det.utils.files import atomic_path
from studies.report.statistics import agreement, mean_text
from studies.table3_mini.plots import Curve, Point, ap_plot
from studies.table3_mini.study import (
    BACKBONES,
    BUDGETS,
    CANDIDATE_SCALES,
    COMPARED,
    COMPUTE_RATIO,
    EQUAL_COMPUTE,
    FIRST_SEED,
    ITERATIONS,
    LOW_DATA,
    METHODS,
    PARTS,
    ROBUSTNESS,
    SEEDS,
    SHARES,
    TRAIN,
    VAL,
    Cell,
    read_results,
)

Results = Mapping[str, dict]

TRAINED_BY = "258cd3fe06aa81495be682f8973b88a96af8f59c"
_GRADAUG = tuple(COMPUTE_RATIO)


@dataclass(frozen=True)
class Row:
    """A row of a table: the seeds of one cell, and what they are compared with.

    Args:
        title: first columns, for readers.
        cell: of any seed.
        reference: of any seed; None for a row that is only a reference itself.
    """

    title: tuple[str, ...]
    cell: Cell
    reference: Cell | None = None


def write_study(folder: Path) -> Path:
    """Writes the study's README.md and its plots from the results.

    Args:
        folder: the study's, with ``results`` in it.

    Returns:
        Path of README.md.
    """
    results = read_results(folder / "results")
    for name, plot in study_plots(results).items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(plot)
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(study_text(results))
    return folder / "README.md"


def study_text(results: Results) -> str:
    """Returns all tables in Markdown."""
    parts = [_introduction()]
    for part, title in PARTS.items():
        parts += [f"## {title}", _NOTES[part], _table(part, results)]
        lines = _comparisons(part, results)
        parts += ["\n".join(lines)] if lines else []
        parts += [f"![{caption}]({name})" for name, (at, caption) in _PLOTS.items() if at == part]
    parts += ["## Robustness", _robustness_note(results), _robustness_table(results)]
    return "\n\n".join(parts) + "\n"


def part_rows(part: str) -> list[Row]:
    """The rows of a part's table, also those that are cells of an earlier part."""
    baseline, plain = Cell("baseline", "plain", 0), Cell("gradaug", "plain", 0)
    if part == "main":
        rows = [
            Row((name, METHODS["plain"]), replace(plain, backbone=backbone), baseline)
            for backbone, name in BACKBONES.items()
        ]
        return rows + [
            Row((BACKBONES["gradaug"], METHODS[m]), replace(plain, method=m), plain)
            for m in _GRADAUG
        ]
    if part == "compute":
        baseline = replace(baseline, budget="as-labels")
        rows = [
            Row((BACKBONES[cell.backbone], _fine_tuning(cell)), cell, baseline)
            for cell in (baseline, replace(baseline, backbone="gradaug"))
        ]
        for method in EQUAL_COMPUTE:
            long = replace(plain, budget=f"as-{method}")
            if method != "labels":  # whose plain row is above
                rows.append(Row((BACKBONES["gradaug"], _fine_tuning(long)), long))
            gradaug = replace(plain, method=method)
            rows.append(Row((BACKBONES["gradaug"], f"{METHODS[method]}, 1x"), gradaug, long))
        return rows
    if part == "controls":
        labels, long = replace(plain, method="labels"), replace(plain, budget="as-labels")
        others = [
            labels.control,
            replace(plain, method="rescaled"),
            replace(plain, method="labels-rescaled"),
            replace(labels, min_width=1.0),
            replace(labels, scales=(1.0,)),
        ]
        cells = [plain, long, *others, labels]
        return [Row((METHODS[c.method], _settings(c)), c, labels) for c in cells]
    if part == "low-data":
        return [
            Row((f"{100 * share:g} %", _fine_tuning(cell)), cell, cell.plain)
            for share in (*SHARES, 1.0)
            for method, budget in LOW_DATA
            for cell in [replace(plain, method=method, budget=budget, share=share)]
        ]
    chosen = Cell("gradaug", "labels", 0, split="dev")
    soft = replace(chosen, method="soft")
    cells = [
        *(replace(chosen, method=method) for method in COMPARED),
        *(soft, replace(soft, soft_warmup=ITERATIONS // 2)),
        *(replace(chosen, num_subnets=n) for n in (1, 3)),
        replace(chosen, min_width=0.8),
        *(replace(chosen, scales=scales) for scales in ((1.0, 0.75, 0.5), CANDIDATE_SCALES)),
        replace(chosen, scales=CANDIDATE_SCALES).control,
    ]
    return [Row((METHODS[c.method], _settings(c)), c, chosen) for c in cells]


def values(results: Results, cell: Cell, task: str) -> list[float]:
    """AP of each seed that has a result, in per cent."""
    return [result["metrics"][task]["AP"] for result in _found(results, cell)]


def _found(results: Results, cell: Cell) -> list[Mapping[str, Any]]:
    """A cell's results over seeds; those that are missing are left out."""
    found = (results.get(replace(cell, seed=seed).name) for seed in SEEDS)
    return [result for result in found if result]


def study_plots(results: Results) -> dict[str, str]:
    """Returns SVG text by file name."""
    plain = Cell("gradaug", "plain", 0)

    def curve(title: str, cells: list[Cell], xs: Iterable[float]) -> Curve:
        aps = [values(results, cell, "bbox") for cell in cells]
        points = [Point(x, ap) for x, ap in zip(xs, aps, strict=True) if ap]
        return Curve(title, points, colour=list(METHODS).index(cells[0].method))

    shares = (*SHARES, 1.0)
    low_data = [
        curve(
            _fine_tuning(same),
            [replace(same, share=share) for share in shares],
            [round(share * TRAIN) for share in shares],
        )
        for method, budget in LOW_DATA
        for same in [replace(plain, method=method, budget=budget)]
    ]
    compute = [
        curve(METHODS["plain"], [replace(plain, budget=b) for b in BUDGETS], BUDGETS.values()),
        *(curve(METHODS[m], [replace(plain, method=m)], [c]) for m, c in COMPUTE_RATIO.items()),
    ]
    return {
        "low_data.svg": ap_plot(low_data, "training images", "box AP, %"),
        "compute.svg": ap_plot(compute, "compute, in plain 1x schedules", "box AP, %"),
    }


def _table(part: str, results: Results) -> str:
    head, reference = _HEADS[part]
    columns = (
        *head,
        *("iterations", "seeds", "box AP", "mask AP"),
        *(f"{TASK_NAMES[task]} AP minus {reference}" for task in IOU_TYPES),
    )
    lines = [
        f"| {' | '.join(columns)} |",
        "|" + ":--|" * len(head) + "--:|" * (len(columns) - len(head)),
    ]
    for row in part_rows(part):
        aps = {task: values(results, row.cell, task) for task in IOU_TYPES}
        if not aps["bbox"]:
            continue
        cells = [
            *row.title,
            str(row.cell.iterations),
            str(len(aps["bbox"])),
            *(mean_text(own) for own in aps.values()),
            *(_difference(results, row, task) for task in IOU_TYPES),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _robustness_table(results: Results) -> str:
    """Returns the table of the fine-tunings of the GradAug backbone that are compared."""

    def columns_of(cell: Cell) -> dict[str, list[float]]:
        found = [r["robustness"] for r in _found(results, cell) if "robustness" in r]
        (epsilon,) = (f"{epsilon:g}" for epsilon in ROBUSTNESS["fgsm"])
        return {
            "box AP": [r["AP"]["bbox"] for r in found],
            "box mPC": [r["mPC"]["bbox"] for r in found],
            "box rPC": [rpc for r in found if (rpc := _box_rpc(r)) is not None],
            "mask mPC": [r["mPC"]["segm"] for r in found],
            f"box AP, FGSM {epsilon}/255": [r["fgsm"][epsilon]["bbox"] for r in found],
        }

    cells = [Cell("gradaug", method, 0) for method in COMPARED]
    rows = [(METHODS[cell.method], columns_of(cell)) for cell in cells]
    names = list(rows[0][1])
    columns = ["fine-tuning", "seeds", *names, "box mPC minus plain", f"{names[-1]} minus plain"]
    lines = [f"| {' | '.join(columns)} |", "|:--|" + "--:|" * (len(columns) - 1)]
    (_, reference), *_ = rows
    for title, own in rows:
        if not own["box AP"]:
            continue
        differences = [
            str(agreement(own[name], reference[name]))
            if own is not reference and min(len(own[name]), len(reference[name])) > 1
            else ""
            for name in ("box mPC", names[-1])
        ]
        cells = [title, str(len(own["box AP"])), *(mean_text(own[n]) for n in names), *differences]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _box_rpc(robustness: Mapping[str, Any]) -> float | None:
    return relative_performance(robustness["mPC"]["bbox"], robustness["AP"]["bbox"])


def _robustness_note(results: Results) -> str:
    severities = ", ".join(map(str, ROBUSTNESS["severities"]))
    measured = [result for result in results.values() if "robustness" in result]
    others = sum(not _is_the_results_detector(result) for result in measured)
    return (
        f"Detectors from the GradAug backbone on the first {ROBUSTNESS['images']} validation "
        "images. mPC: mean AP under\nImageNet-C's 15 corruptions at severity "
        f"{severities}; rPC: that in per cent of AP without them.\n"
        "A detector that was gone was trained again first; on another kind of processor than "
        "before it is\nanother one of the same settings and seed, with other AP than the tables "
        "above have: "
        f"{others} of these {len(measured)}."
    )


def _is_the_results_detector(result: dict[str, Any]) -> bool:
    """Returns whether the detector whose robustness was measured has the result's AP. One that was
    measured before that was written down had not been trained again."""
    own = {task: values["AP"] for task, values in result["metrics"].items()}
    return result["robustness"].get("detector_AP", own) == own


def _comparisons(part: str, results: Results) -> list[str]:
    """Returns the differences that no table has: ``both`` and ``labels``, GradAug and plain
    fine-tuning with rescaled images, GradAug without them and plain fine-tuning, and GradAug in
    pretraining and fine-tuning and neither."""
    labels, compared = Cell("gradaug", "labels", 0), []
    if part == "main":
        title = "GradAug, both, minus GradAug, labels, same iterations"
        compared.append(Row((title,), replace(labels, method="both"), labels))
    lengths = {"main": ("iterations", "1x"), "compute": ("compute of fine-tuning", "as-labels")}
    if part in lengths:
        same, budget = lengths[part]
        neither = Cell("baseline", "plain", 0, budget)
        title = f"GradAug, labels, minus plain from the baseline backbone, same {same}"
        compared.append(Row((title,), labels, neither))
    if part == "sweep":
        candidate = replace(labels, scales=CANDIDATE_SCALES, split="dev")
        title = (
            f"GradAug, labels, with {_settings(candidate)} minus plain on images of these sizes, "
            f"{_length(candidate.control)}"
        )
        compared.append(Row((title,), candidate, candidate.control))
    if part == "controls":
        narrower = replace(labels, scales=(1.0,))
        title = f"GradAug, labels, with {_settings(narrower)} minus plain, same iterations"
        compared.append(Row((title,), narrower, narrower.plain))
        both, plain = (replace(labels, method=m) for m in ("labels-rescaled", "rescaled"))
        for length, reference in (("iterations", plain), ("compute", labels.control)):
            title = f"GradAug on rescaled images minus plain on rescaled images, same {length}"
            compared.append(Row((title,), both, reference))
    if part == "low-data":
        for share in (*SHARES, 1.0):
            title = f"{100 * share:g} %: GradAug minus plain on rescaled images, same compute"
            some = replace(labels, share=share)
            compared.append(Row((title,), some, some.control))
    # A part of the sweep has one seed alone: it is read against the same seed of the others.
    lines = _first_seed(results) if part == "sweep" else []
    for row in compared:
        shown = {task: _difference(results, row, task) for task in IOU_TYPES}
        if all(shown.values()):
            texts = (f"{TASK_NAMES[task]} AP {text}" for task, text in shown.items())
            lines.append(f"- {row.title[0]}: {', '.join(texts)}.")
    return lines


def _first_seed(results: Results) -> list[str]:
    """Returns lines to read rows of one seed against, where other rows are means over seeds."""
    cells = [Cell("gradaug", method, FIRST_SEED, split="dev") for method in COMPARED]
    found = [(cell, results[cell.name]["metrics"]) for cell in cells if cell.name in results]
    return [
        f"- {METHODS[cell.method]}, seed {FIRST_SEED} alone: box AP {metrics['bbox']['AP']:.1f}, "
        f"mask AP {metrics['segm']['AP']:.1f}."
        for cell, metrics in found
    ]


def _difference(results: Results, row: Row, task: str) -> str:
    """Returns the row minus its reference; empty with fewer than two seeds of either."""
    # Of one seed there is no interval, and a difference without one says nothing.
    if row.reference is None or row.reference == row.cell:
        return ""
    ours, theirs = (values(results, cell, task) for cell in (row.cell, row.reference))
    return str(agreement(ours, theirs)) if min(len(ours), len(theirs)) > 1 else ""


def _settings(cell: Cell) -> str:
    has_targets = cell.supervision in ("soft", "both")
    changed = cell.changed | ({"soft_warmup": cell.soft_warmup} if has_targets else {})
    names = {"num_subnets": "n", "min_width": "alpha", "soft_warmup": "warm-up"}
    texts = [f"{names.get(key, key)} {_value_text(value)}" for key, value in changed.items()]
    if cell.uses_gradaug and not texts:
        return "as everywhere"
    return "; ".join(filter(None, [_length(cell), *texts]))


def _fine_tuning(cell: Cell) -> str:
    return ", ".join(filter(None, (METHODS[cell.method], _length(cell))))


def _length(cell: Cell) -> str:
    """In 1x schedules; empty for one."""
    return "" if cell.budget == "1x" else f"{BUDGETS[cell.budget]:g}x"


def _value_text(value: object) -> str:
    return ", ".join(f"{x:g}" for x in value) if isinstance(value, tuple) else f"{value:g}"


def _introduction() -> str:
    default = Cell("gradaug", "labels", 0)
    scales = ", ".join(f"{scale:g}" for scale in default.scales)
    ratios = ", ".join(f"{ratio:g} (`{method}`)" for method, ratio in COMPUTE_RATIO.items())
    return f"""# Table 3 of the paper in small: fine-tuning on mini-COCO

Mask R-CNN with ResNet-18-FPN in Detectron2 (`configs/detectron2/mini_mask_rcnn_R_18_FPN_*.yaml`),
{TRAIN} training and {VAL} validation images, 1x = {ITERATIONS} iterations of 4 images: each image \
is seen
{ITERATIONS * 4 / TRAIN:g} times, enough to begin to learn it by heart, which is what \
a regularizer is against.

Written by `python -m studies.table3_mini` from `results/`, one file a training with its command,
commit, all box and mask metrics and final losses. The program that trained them is in commit
`{TRAINED_BY}`: there `make study` goes on with what is missing, and
`tools/study_table3.py --redo NAME` trains one from nothing and compares. On one thread of the same
kind of machine every digit was the same.

- Backbones are those of the mini zoo's study (`studies/mini_zoo`): same garments, same epochs,
  pretraining seed 0. Seeds here are of new layers, image order and sub-networks.
- GradAug: n = {default.num_subnets}, alpha = {default.min_width:g}, scales {scales}, unless a \
table says otherwise.
  `soft`: sub-networks learn from the full network's outputs, `labels`: from ground truth, `both`:
  from both.
- Pretrained backbones keep their BatchNorm frozen, as the config says. Random weights have no
  statistics to freeze: the rows without a backbone train theirs (`MODEL.RESNETS.NORM BN`), so they
  differ from the others in more than their weights.
- AP in per cent, ± standard deviation over seeds; in brackets Welch's 95 % interval.
- Settings are chosen on a dev build of mini-COCO (`gradaug-det build-mini-coco --dev`), whose
  images show garments of Fashion-MNIST's train split alone. All parts but the last report on the
  test split's garments.
- Equal compute: a GradAug step takes {ratios}
  times a plain one's processor time, measured in turns in one run, so plain fine-tuning gets that
  many times the iterations."""


_HEADS = {
    "main": (("backbone", "fine-tuning"), "reference"),
    "compute": (("backbone", "fine-tuning, length"), "reference"),
    "controls": (("fine-tuning", "settings"), "GradAug, labels"),
    "low-data": (("images", "fine-tuning"), "plain"),
    "sweep": (("fine-tuning", "settings"), "GradAug, labels"),
}
"""First columns of a part's table, and what its rows are compared with."""
_NOTES = {
    "main": (
        "Plain rows are compared with the plain row of the baseline backbone, GradAug's with the "
        "plain row of the same backbone. Target: "
        "+1.7 box AP and +2.1 mask AP, the paper's gain on COCO."
    ),
    "compute": (
        "Plain rows are compared with the baseline's, each GradAug row (the same trainings as "
        "above) with the plain row of its own compute."
    ),
    "controls": (
        "A sub-network is narrower and sees a rescaled batch. Here each comes without the other: "
        "plain\nfine-tuning with images of those sizes, sub-networks of full width (alpha 1), and "
        "narrower ones on\nimages as they are (scales 1). Last, both: GradAug whose full network "
        "sees rescaled images too. From\nthe GradAug backbone."
    ),
    "low-data": (
        "From the GradAug backbone, on the first images of the training set. The same number of "
        "iterations, but\nplain fine-tuning with rescaled images takes GradAug's compute (with "
        "fewer images one seed)."
    ),
    "sweep": (
        "On the dev split: these numbers choose settings and are no result. Most settings have one "
        "seed."
    ),
}
_PLOTS = {
    "compute.svg": ("compute", "Box AP by compute, from the GradAug backbone"),
    "low_data.svg": ("low-data", "Box AP by number of training images"),
}
