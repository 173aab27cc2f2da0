"""The demonstration: a detector fine-tuned from zoo backbones with and without GradAug.

Each part is skipped when it was done with the same settings, and resumed when it was interrupted.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from gradaug_det.mini_coco import build_mini_coco
from gradaug_det.utils.environment import describe_environment, usable_cores
from studies.report.records import Report
from studies.report.report import write_report
from studies.runner.finetuning import Training, run_trainings
from studies.runner.frameworks import FineTuning, get_framework

logger = logging.getLogger(__name__)

BASELINE, GRADAUG = "gradaug://mini-resnet18-baseline", "gradaug://mini-resnet18-gradaug"


@dataclass(frozen=True)
class DemoSettings:
    """Size of the demonstration; the defaults train for 10 to 15 minutes on 2 CPU cores.

    Args:
        framework: a name of :data:`studies.runner.frameworks.FRAMEWORKS`.
        train, val: images of mini-COCO.
        iterations: of each fine-tuning, at 4 images a step.
        seed: of data and fine-tuning.
        jobs: fine-tunings at a time; they share the cores. Two with a thread each are quicker than
            one after the other with 2 threads (a plain step: 0.49 s for both, against 0.32 s each).
        baseline_weights, gradaug_weights: backbones pretrained without and with GradAug:
            ``gradaug://NAME``, paths or URLs.
        opts: further overrides of all fine-tunings, as the framework's script takes them.

    Raises:
        ConfigError: the framework is unknown.
    """

    framework: str = "detectron2"
    train: int = 400
    val: int = 200
    iterations: int = 300
    seed: int = 1
    jobs: int = 2
    baseline_weights: str = BASELINE
    gradaug_weights: str = GRADAUG
    opts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        get_framework(self.framework)


def run_demo(
    out: str | Path, report_folder: str | Path, root: str | Path, settings: DemoSettings
) -> Path:
    """Runs what is missing and writes the report.

    Args:
        out: folder for data and trainings.
        report_folder: folder for the report.
        root: the project's folder, with ``tools`` and ``configs``.

    Returns:
        Path of the report's ``index.html``.

    Raises:
        GradAugError: a training failed; names its log.
    """
    out, root = Path(out).resolve(), Path(root)
    framework = get_framework(settings.framework)
    clock = time.perf_counter()

    def say(what: str) -> None:
        logger.info("[%4.0f s] %s", time.perf_counter() - clock, what)

    say(f"mini-COCO: {settings.train} train and {settings.val} val images (about a minute)")
    folder = out / f"datasets-seed{settings.seed}" / "mini_coco"
    data = build_mini_coco(folder, settings.train, settings.val, seed=settings.seed)
    trainings = demo_trainings(out, data, settings)
    say(
        f"{len(trainings)} fine-tunings, {settings.iterations} iterations each, {settings.jobs} at "
        "a time (10 to 15 minutes on 2 cores)"
    )
    # The longest first: the others together take about as long.
    order = sorted(trainings, key=lambda training: training.job.method != "gradaug")
    threads = max(1, usable_cores() // settings.jobs)
    done = {r.name: r for r in run_trainings(order, root, jobs=settings.jobs, threads=threads)}
    runs = [done[training.name] for training in trainings]
    report = Report(
        title=f"GradAug on mini-COCO: Mask R-CNN, ResNet-18-FPN, {framework.title}",
        runs=runs,
        baseline=runs[0].name,
        gt_json=data / "annotations" / "instances_val.json",
        image_root=data / "val",
        environment=describe_environment(),
        commands=[training.shell_line(out, "output/demo") for training in trainings],
        dataset="mini-COCO val",
        introduction=(
            "The model zoo's two ResNet-18 were pretrained on the same kind of garments under one "
            "budget, without and with GradAug. From both, Mask R-CNN is fine-tuned plainly; from "
            "the second also with GradAug's sub-networks in each step. All three see the same "
            "batches. With one seed, nobody can tell how much of a difference is chance."
        ),
    )
    index = write_report(report_folder, report)
    say(f"report: {index}")
    return index


def demo_trainings(out: Path, data: Path, settings: DemoSettings) -> list[Training]:
    """The three fine-tunings: the rows of the paper's table 3, in small."""
    framework = get_framework(settings.framework)
    rows = (
        ("plain-from-baseline", "plain", settings.baseline_weights, "baseline"),
        ("plain-from-gradaug", "plain", settings.gradaug_weights, "GradAug"),
        ("gradaug-from-gradaug", "gradaug", settings.gradaug_weights, "GradAug"),
    )
    titles = {"plain": "Plain", "gradaug": "GradAug"}
    return [
        Training(
            name=name,
            method=name,
            label=f"{titles[method]} fine-tuning, {backbone} backbone",
            framework=framework,
            job=FineTuning(method, weights, settings.iterations, settings.seed, settings.opts),
            folder=out / framework.name / name,
            data=data,
        )
        for name, method, weights, backbone in rows
    ]
