"""The mini zoo's study as Markdown, from the results' files alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean

from gradaug_det.utils.files import atomic_path
from studies.mini_zoo.study import COMPUTE_RATIO, LONG, METHODS, PLAIN, SPLITS, Run
from studies.report.statistics import agreement, mean_text

Results = Mapping[str, dict]

COLUMNS = {
    "top1": "top-1",
    "fgsm1": "FGSM 1/255",
    "fgsm2": "2/255",
    "fgsm4": "4/255",
    "corruption": "corrupted",
    **{f"corruption{severity}": f"sev. {severity}" for severity in (1, 2, 3, 4, 5)},
}
COMPARED = ("top1", "fgsm1")
_TITLES = {"full": "All 4000 training garments", "tenth": "A tenth of them (400)"}


def write_tables(
    file: Path, results: Results, seeds: Iterable[int], fit: Mapping[str, float] | None = None
) -> Path:
    """Writes all tables; rows without any result are left out.

    Args:
        fit: accuracy on their own training images by the runs' names, for another table.
    """
    seeds = list(seeds)
    parts = [_HEAD]
    for split, title in _TITLES.items():
        _, epochs = SPLITS[split]
        longer = round(epochs * COMPUTE_RATIO)
        parts.append(f"## {title}")
        parts += _section(f"Same epochs ({epochs})", results, split, "epochs", METHODS, seeds)
        heading = f"Same compute (plain methods: {longer} epochs; GradAug: {epochs})"
        parts += _section(heading, results, split, "compute", METHODS, seeds)
        heading = f"Same epochs, more of them ({longer})"
        if any(values(results, Run(name, split, "long", 0), seeds, "top1") for name in LONG):
            parts += _section(heading, results, split, "long", [*PLAIN, *LONG], seeds)
    if fit:
        parts += ["## How well they fit their own training images", _FIT, _fit_table(fit, seeds)]
    with atomic_path(file) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n")
    return file


def values(results: Results, run: Run, seeds: Iterable[int], metric: str) -> list[float]:
    """The metric of each seed that has a result.

    At equal compute, GradAug's rows are those of equal epochs; when all train long, plain methods'
    rows are those of equal compute.
    """
    # GradAug has no longer trainings "at equal compute": the plain methods are what is stretched.
    own = {"compute": "epochs"} if run.method not in PLAIN else {"long": "compute"}
    budget = own.get(run.budget, run.budget)
    names = (Run(run.method, run.split, budget, seed).name for seed in seeds)
    return [results[name]["metrics"][metric] for name in names if name in results]


def _section(
    heading: str, results: Results, split: str, budget: str, methods: Iterable[str], seeds: list
) -> list[str]:
    lines = [
        f"| method | seeds | {' | '.join(COLUMNS.values())} | "
        + " | ".join(f"{COLUMNS[metric]} minus baseline" for metric in COMPARED)
        + " |",
        "|:--|--:|" + "--:|" * (len(COLUMNS) + len(COMPARED)),
    ]
    baseline = Run("baseline", split, budget, 0)
    if budget == "compute" and not values(results, baseline, seeds, "top1"):
        return []  # GradAug's rows are those of equal epochs: there is nothing to compare yet
    for method in methods:
        run = Run(method, split, budget, 0)
        top1 = values(results, run, seeds, "top1")
        if not top1:
            continue
        cells = [
            mean_text(found) if metric == "top1" else f"{fmean(found):.1f}"
            for metric in COLUMNS
            for found in [values(results, run, seeds, metric)]
        ]
        differences = [
            _difference(
                method,
                values(results, run, seeds, metric),
                values(results, baseline, seeds, metric),
            )
            for metric in COMPARED
        ]
        row = [METHODS[method], str(len(top1)), *cells, *differences]
        lines.append(f"| {' | '.join(row)} |")
    return [f"### {heading}", "\n".join(lines)] if len(lines) > 2 else []


def _fit_table(fit: Mapping[str, float], seeds: list) -> str:
    columns = [
        (
            f"{share}, {round(epochs * (COMPUTE_RATIO if budget != 'epochs' else 1))} epochs",
            s,
            budget,
        )
        for s, share in (("full", "all"), ("tenth", "a tenth"))
        for _, epochs in [SPLITS[s]]
        for budget in ("epochs", "long")
    ]
    lines = [
        "| method | " + " | ".join(title for title, *_ in columns) + " |",
        "|:--|" + "--:|" * len(columns),
    ]
    results = {name: {"metrics": {"train": value}} for name, value in fit.items()}
    for method, title in METHODS.items():
        cells = []
        for _, split, budget in columns:
            found = values(results, Run(method, split, budget, 0), seeds, "train")
            cells.append(mean_text(found))
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _difference(method: str, numbers: list[float], reference: list[float]) -> str:
    if method == "baseline" or min(len(numbers), len(reference)) < 2:
        return ""
    return str(agreement(numbers, reference))


_FIT = """Per cent right without augmentation: near 100, a network has learned its images by heart,
and a regularizer has something to do; far below, it has not finished learning."""
_HEAD = f"""# The mini zoo: eight ways of pretraining, one budget

ResNet-18 on 32x32 pictures of garments (`configs/pretrain/mini_resnet18_*.yaml`), from random
weights. Written by `make study-zoo` (`python -m studies.mini_zoo`) from `results/`, one file a run
with its command, commit and all metrics.

Accuracies are in per cent, of the weights as the zoo stores them (float16): clean and under FGSM
(white box) on all 1200 held-out garments, corrupted (the 15 corruptions of ImageNet-C, severities 1
to 5) on 400 of them. ± is the standard deviation over seeds; in brackets is Welch's 95 % interval.

A GradAug step (n = 2, alpha = 0.9, scales 32, 28, 24, 20) takes about {COMPUTE_RATIO} times a plain
one's processor time (`python -m studies.mini_zoo.step_cost`), so at the same compute plain methods
train that much longer. Optimizer and rate were chosen for the baseline, on a tenth of the training
images (`data.holdout=0.1`)."""
