"""The mini zoo's study: every method of pretraining, over seeds, from one budget.

A run is a process of ``tools/pretrain.py`` and one of ``evaluate_backbone.py``; what it measured
is a small JSON file. A queue of runs goes on where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gradaug_det.errors import GradAugError
from gradaug_det.pretrain.recipe import load_recipe
from gradaug_det.utils.environment import describe_environment
from gradaug_det.utils.files import atomic_path

logger = logging.getLogger(__name__)

METHODS = {
    "baseline": "Baseline",
    "mixup": "Mixup",
    "cutmix": "CutMix",
    "stochdepth": "Stochastic depth",
    "gradaug": "GradAug, width",
    "gradaug_views": "GradAug, width, own views",
    "gradaug_depth": "GradAug, depth",
    "gradaug_cutmix": "GradAug, width + CutMix",
}
PLAIN = tuple(name for name in METHODS if not name.startswith("gradaug"))
LONG = ("gradaug", "gradaug_views")
"""Also trained for as many epochs as plain methods at equal compute: does it want more of them?"""
SPLITS = {"full": (1.0, 10), "tenth": (0.1, 40)}
"""Share of the 4000 training garments, and epochs."""
COMPUTE_RATIO = 2.7
"""A GradAug step (n = 2) over a plain one, in processor time, as ``step_cost.py`` measures it. At
equal compute, plain methods train that many times as long."""


@dataclass(frozen=True)
class Run:
    """One training of the study.

    Args:
        method: key of :data:`METHODS`.
        split: key of :data:`SPLITS`.
        budget: ``epochs`` (all methods the same), ``compute`` (plain methods train longer), or
            ``long`` (a GradAug method trains for those epochs too).
        seed: of weights, order, augmentation and sub-networks, and of the images of a share.
    """

    method: str
    split: str
    budget: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.method}-{self.split}-{self.budget}-seed{self.seed}"

    @property
    def config(self) -> str:
        return f"configs/pretrain/mini_resnet18_{self.method}.yaml"

    @property
    def overrides(self) -> list[str]:
        share, epochs = SPLITS[self.split]
        if self.budget != "epochs":
            epochs = round(epochs * COMPUTE_RATIO)
        return [f"data.fraction={share}", f"epochs={epochs}", f"seed={self.seed}"]


def all_runs(seeds: Iterable[int]) -> list[Run]:
    """The study's runs, seed by seed, so that what is there when it stops is balanced."""
    seeds = list(seeds)
    runs = [
        Run(method, split, budget, seed)
        for seed in seeds
        for split in SPLITS
        for budget in ("epochs", "compute")
        for method in METHODS
        if budget == "epochs" or method in PLAIN
    ]
    return runs + [
        Run(method, split, "long", seed) for seed in seeds for split in SPLITS for method in LONG
    ]


def run_study(
    runs: Sequence[Run],
    root: Path,
    out: Path,
    results: Path,
    *,
    jobs: int = 2,
    evaluation: Sequence[str] = (),
) -> dict[str, dict]:
    """Runs what is missing, ``jobs`` at a time with one thread each.

    Args:
        root: the project's folder.
        out: folder of the trainings.
        results: folder of the results, one file a run.
        evaluation: further arguments of ``studies.mini_zoo.evaluate_backbone``.

    Returns:
        The results by the runs' names.

    Raises:
        GradAugError: a run failed; names its log.
    """
    with ThreadPoolExecutor(jobs) as pool:
        found = list(
            pool.map(lambda run: _finish(run, root, out / run.name, results, evaluation), runs)
        )
    return {run.name: result for run, result in zip(runs, found, strict=True)}


def train_accuracies(runs: Iterable[Run], out: Path) -> dict[str, float]:
    """Per cent of its own training images that each trained backbone classifies right, without
    augmentation; runs whose backbone is not in ``out`` are left out."""
    from gradaug_det.pretrain.data import load_images
    from gradaug_det.pretrain.recipe import DataSettings
    from gradaug_det.pretrain.scoring import load_classifier
    from gradaug_det.zoo.backbone import read_info
    from studies.mini_zoo.robustness import accuracy

    found = {}
    for run in runs:
        file = out / run.name / "backbone.safetensors"
        if file.is_file():
            model, recipe = load_classifier(str(file)), read_info(file).recipe
            chosen = load_images(DataSettings(**recipe["data"]), recipe["seed"]).train
            crops, indices = chosen.dataset, chosen.indices
            correct = accuracy(model, crops.pixels(indices), crops.targets[indices])
            found[run.name] = round(correct, 2)
    return found


def recipe_hash(run: Run, root: Path) -> str:
    """Hashes the whole recipe: a result of other settings is not taken for this run's."""
    recipe = load_recipe(root / run.config, run.overrides).as_dict()
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def read_result(run: Run, root: Path, results: Path) -> dict | None:
    """The result of a run, or None if it is missing or was made with other settings."""
    file = results / f"{run.name}.json"
    if not file.is_file():
        return None
    content = json.loads(file.read_text())
    return content if content["recipe_hash"] == recipe_hash(run, root) else None


def _finish(run: Run, root: Path, folder: Path, results: Path, evaluation: Sequence[str]) -> dict:
    done = read_result(run, root, results)
    if done is not None:
        return done
    logger.info("%s: started", run.name)
    weights, measured = folder / "backbone.safetensors", folder / "robustness.json"
    log = folder / "train.log"
    call_tool(
        ["tools/pretrain.py", "--config", run.config, "--out", folder, *run.overrides], root, log
    )
    call_tool(
        ["studies.mini_zoo.evaluate_backbone", weights, "--out", measured, *evaluation], root, log
    )
    metrics = json.loads(measured.read_text())
    content = {
        "run": run.name,
        "recipe_hash": recipe_hash(run, root),
        "commit": describe_environment()["git_commit"],
        "command": " ".join(["tools/pretrain.py", "--config", run.config, *run.overrides]),
        "metrics": {name: round(value, 4) for name, value in metrics.items()},
    }
    with atomic_path(results / f"{run.name}.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    logger.info("%s: %.2f %% top-1", run.name, metrics["top1"])
    return content


def call_tool(command: Sequence[object], root: Path, log: Path) -> None:
    """Runs a tool (its path from ``root``) or module on one thread; its output goes to ``log``.

    Raises:
        GradAugError: it failed; names the log.
    """
    start = [] if str(command[0]).endswith(".py") else ["-m"]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        status = subprocess.run(
            [sys.executable, "-W", "ignore", *start, *map(str, command)],
            cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
        ).returncode
    if status:
        raise GradAugError(f"{command[0]} ended with exit code {status}; its output is in {log}")
