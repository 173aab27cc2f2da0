"""The same fine-tunings in both frameworks, over seeds: do the frameworks agree?"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from gradaug_det.errors import ConfigError
from gradaug_det.evaluation.coco import IOU_TYPES, TASK_NAMES
from gradaug_det.mini_coco import build_mini_coco
from gradaug_det.utils.environment import describe_environment
from studies.report.comparison import group_methods
from studies.report.records import Report, RunRecord
from studies.report.report import write_report
from studies.report.statistics import Agreement, agreement
from studies.runner.finetuning import Training, run_trainings, score_training
from studies.runner.frameworks import FRAMEWORKS, FineTuning

logger = logging.getLogger(__name__)

METHODS = {"plain": "Plain", "gradaug": "GradAug"}
REMAINING = (
    "the order of the images and all other random numbers, which come from each framework's own "
    "generators; an anchor that is the best of an object though another object overlaps it more "
    "(Detectron2 gives it to the other, MMDetection to the first)"
)


@dataclass(frozen=True)
class FrameworkComparison:
    """Settings of the comparison.

    Args:
        seeds: of the fine-tunings; at least two. The data stay the same.
        iterations: of each, at 4 images a step.
        train, val: images of mini-COCO.
        data_seed: of mini-COCO.
        weights: the backbone that all start from, in each framework's names if it is a path.
        opts: further overrides by framework.

    Raises:
        ConfigError: fewer than two seeds, a seed twice.
    """

    seeds: tuple[int, ...] = (1, 2, 3)
    iterations: int = 200
    train: int = 400
    val: int = 200
    data_seed: int = 1
    weights: dict[str, str] = field(
        default_factory=lambda: dict.fromkeys(FRAMEWORKS, "gradaug://mini-resnet18-gradaug")
    )
    opts: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.seeds) < 2 or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("seeds", f"must be two or more, each once; got {list(self.seeds)}")


def compare_frameworks(
    out: str | Path,
    report_folder: str | Path,
    root: str | Path,
    settings: FrameworkComparison,
    *,
    jobs: int = 2,
    threads: int | None = 1,
) -> Path:
    """Runs what is missing and writes the report.

    Args:
        out: folder for data and trainings.
        report_folder: folder for the report.
        root: the project's folder, with ``tools`` and ``configs``.
        jobs, threads: see :func:`studies.runner.finetuning.run_trainings`.

    Returns:
        Path of the report's ``index.html``.

    Raises:
        GradAugError: a training failed; names its log.
    """
    out = Path(out).resolve()
    data = build_mini_coco(
        out / "datasets" / "mini_coco", settings.train, settings.val, seed=settings.data_seed
    )
    trainings = comparison_trainings(out, data, settings)
    logger.info("%d trainings, %d at a time", len(trainings), jobs)
    seconds = run_trainings(trainings, Path(root), jobs=jobs, threads=threads)
    runs = list(map(score_training, trainings, seconds))
    report = Report(
        title="Detectron2 and MMDetection on mini-COCO: Mask R-CNN, ResNet-18-FPN",
        runs=runs,
        baseline=runs[0].name,
        gt_json=data / "annotations" / "instances_val.json",
        image_root=data / "val",
        environment=describe_environment(),
        commands=[training.shell_line(out, "output/frameworks") for training in trainings],
        dataset="mini-COCO val",
        agreements=framework_agreements(runs),
        introduction=(
            f"The same fine-tuning in both frameworks, {len(settings.seeds)} seeds each, from one "
            f"backbone: same sizes, schedule, gradient clipping, samplers and thresholds. What "
            f"still differs: {REMAINING}."
        ),
    )
    return write_report(report_folder, report)


def comparison_trainings(out: Path, data: Path, settings: FrameworkComparison) -> list[Training]:
    """All fine-tunings: every seed of all methods before the next, so that it can be cut short."""
    return [
        Training(
            name=f"{framework.name}-{method}-seed{seed}",
            method=f"{framework.name}-{method}",
            label=f"{label}, {framework.title}",
            framework=framework,
            job=FineTuning(
                method,
                settings.weights[framework.name],
                settings.iterations,
                seed,
                settings.opts.get(framework.name, ()),
            ),
            folder=out / f"{framework.name}-{method}-seed{seed}",
            data=data,
        )
        for seed in settings.seeds
        for method, label in METHODS.items()
        for framework in FRAMEWORKS.values()
    ]


def framework_agreements(runs: list[RunRecord]) -> dict[str, Agreement]:
    """Compares the frameworks, and GradAug with plain fine-tuning, over seeds.

    Args:
        runs: of all methods of :func:`comparison_trainings`, at least two seeds each.
    """
    methods = {m.name: m for m in group_methods(runs, runs[0].method)}
    first, second = FRAMEWORKS.values()
    pairs = [
        (
            f"{label}, {first.title} minus {second.title}",
            methods[f"{first.name}-{method}"],
            methods[f"{second.name}-{method}"],
        )
        for method, label in METHODS.items()
    ] + [
        (
            f"{framework.title}, GradAug minus plain",
            methods[f"{framework.name}-gradaug"],
            methods[f"{framework.name}-plain"],
        )
        for framework in FRAMEWORKS.values()
    ]
    return {
        f"{what}, {TASK_NAMES[task]} AP": agreement(
            one.values(task, "AP"), other.values(task, "AP")
        )
        for what, one, other in pairs
        for task in IOU_TYPES
    }
