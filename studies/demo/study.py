"""The demonstration: three detectors of the same processor time, and what each is at any width.

Each part is skipped when it was done with the same settings, and resumed when it was interrupted.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from gradaug_det.errors import GradAugError
from gradaug_det.mini_coco import build_mini_coco
from gradaug_det.utils.environment import usable_cores
from studies.runner.finetuning import Training, run_trainings
from studies.runner.frameworks import FineTuning, get_framework

logger = logging.getLogger(__name__)

CLASSES = ("Trouser", "Pullover", "Dress", "Sneaker", "Bag")
METHODS = {"plain": "plain", "gradaug": "GradAug", "anywidth": "any width"}
WIDTHS = ("1", "0.875", "0.75", "0.5")  # those that the third is trained at


@dataclass(frozen=True)
class DemoSettings:
    """Size of the demonstration; the defaults train for some 10 minutes on 2 CPU cores.

    Args:
        framework: a name of :data:`studies.runner.frameworks.FRAMEWORKS`.
        train, val: images of mini-COCO.
        seed: of data and fine-tuning.
        jobs: fine-tunings at a time; they share the cores. Some with a thread each are quicker than
            one after the other with all threads.
        opts: further overrides of all fine-tunings, as the framework's script takes them.
        benchmark: further arguments of ``gradaug-det benchmark``.

    Raises:
        ConfigError: the framework is unknown.
    """

    framework: str = "detectron2"
    train: int = 600
    val: int = 100
    seed: int = 1
    jobs: int = 3
    opts: tuple[str, ...] = ()
    benchmark: tuple[str, ...] = ()

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
        GradAugError: a training or the benchmark failed; names the training's log.
    """
    out, root, report_folder = Path(out).resolve(), Path(root), Path(report_folder).resolve()
    clock = time.perf_counter()

    def say(what: str) -> None:
        logger.info("[%4.0f s] %s", time.perf_counter() - clock, what)

    say(f"mini-COCO: {settings.train} train and {settings.val} val images (about a minute)")
    folder = out / f"datasets-seed{settings.seed}" / "mini_coco"
    sizes = {"train": settings.train, "val": settings.val, "seed": settings.seed}
    data = build_mini_coco(folder, **sizes, classes=CLASSES, min_scale=2.5)
    trainings = demo_trainings(out, data, settings)
    say(f"{len(trainings)} fine-tunings, {settings.jobs} at a time (about 10 minutes on 2 cores)")
    threads = max(1, usable_cores() // settings.jobs)
    run_trainings(trainings, root, jobs=settings.jobs, threads=threads)
    say(f"benchmark at {len(WIDTHS)} widths (some 3 minutes)")
    command = [*benchmark_command(trainings, data), "--out", str(report_folder), "--resume"]
    script = [sys.executable, "-W", "ignore", "tools/benchmark.py"]
    if subprocess.run([*script, *command, *settings.benchmark], cwd=root).returncode:
        raise GradAugError("the benchmark failed; its message is above")
    index = report_folder / "index.html"
    say(f"report: {index}")
    return index


def demo_trainings(out: Path, data: Path, settings: DemoSettings) -> list[Training]:
    """Returns the three fine-tunings."""
    framework = get_framework(settings.framework)
    return [
        Training(
            name=method,
            method=method,
            label=label,
            framework=framework,
            job=FineTuning(method, None, None, settings.seed, settings.opts, experiment="demo"),
            folder=out / framework.name / method,
            data=data,
        )
        for method, label in METHODS.items()
    ]


def benchmark_command(trainings: list[Training], data: Path) -> list[str]:
    """Returns the arguments of ``gradaug-det benchmark`` for finished trainings."""
    weights = [one.framework.weights(one.folder) for one in trainings]
    return [
        *("--config", *(one.config for one in trainings)),
        *("--weights", *map(str, weights)),
        *("--label", *(one.label for one in trainings)),
        *("--coco", str(data), "--split", "val", "--widths", *WIDTHS),
        *("--match", "40", "--calibrate", str(data / "train"), "--cost-images", "10"),
    ]
