"""Training and testing the cells, each in a process of its own; goes on where it was stopped."""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, default_setup, hooks
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping

from gradaug_det.core.slimming import at_width
from gradaug_det.d2.backbone import slimmable_part
from gradaug_det.d2.config import load_config
from gradaug_det.d2.data import check_datasets, register_coco
from gradaug_det.d2.preprocessing import check_preprocessing
from gradaug_det.d2.train import Trainer
from gradaug_det.errors import DataError, GradAugError
from gradaug_det.export.calibration import measure_moments, recalibrate
from gradaug_det.utils.environment import describe_environment
from gradaug_det.utils.files import atomic_path
from studies.real_photos.study import split_fold

ROOT = Path(__file__).resolve().parents[2]


def train_cells(names: Sequence[str], arguments: Sequence[str], logs: Path, jobs: int) -> list[str]:
    """Trains cells with a thread each, ``jobs`` at a time; returns the names of those that failed.

    Args:
        arguments: of ``python -m studies.real_photos cell NAME``.
        logs: folder for what the processes print.
    """
    command = [sys.executable, "-W", "ignore", "-m", "studies.real_photos", "cell"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    waiting, running, failed = list(names), {}, []
    logs.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                name = waiting.pop(0)
                print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
                with (logs / f"{name}.log").open("a") as log:
                    streams = {"stdout": log, "stderr": subprocess.STDOUT}
                    line = [*command, name, *arguments]
                    running[name] = subprocess.Popen(line, cwd=ROOT, env=environment, **streams)
            time.sleep(0.2)
            for name in [name for name, process in running.items() if process.poll() is not None]:
                if code := running.pop(name).returncode:
                    failed.append(name)
                    print(f"exit code {code}: see {logs / name}.log", flush=True)
    finally:
        for process in running.values():  # each saves a checkpoint
            process.terminate()
        for process in running.values():
            process.wait()
    return failed


def train_cell(name: str, cell: dict[str, Any], data: Path, out: Path, results: Path) -> Path:
    """Trains a cell, or goes on with it; tests it and writes its result, whose path is returned.

    Args:
        cell: its settings, from :func:`.study.read_cells`.
        data: folder of the sets.
        out: for a folder with its checkpoints, of which the last one's weights stay.
    """
    folder, result = out / name, results / f"{name}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GradAugError(f"{name} is being trained by another process") from None
        trainer = CellTrainer(prepare_cell(name, cell, data / cell["set"], folder))
        trainer.resume_or_load(resume=True)
        trainer.train()
        environment = describe_environment()
        command = ["python", "-m", "studies.real_photos", "train", "--data", "DATA"]
        record = {
            "settings": cell,
            **measure_widths(trainer, cell),
            **trainer.cost.state_dict(),
            **{"commit": environment["git_commit"], "machine": environment["cpu"]},
            **{"torch": torch.__version__},
            "command": shlex.join([*command, "--only", f"^{re.escape(name)}$"]),
        }
        with atomic_path(folder / "model.pth") as temporary:
            torch.save({"model": trainer.model.state_dict()}, temporary)
        with atomic_path(result) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        for checkpoint in [*folder.glob("model_*.pth"), folder / "last_checkpoint"]:
            checkpoint.unlink(missing_ok=True)
    return result


def prepare_cell(name: str, cell: dict[str, Any], source: Path, folder: Path) -> CfgNode:
    """Returns a cell's config, with its annotations in ``folder``; empties that first if what is
    in it belongs to other settings or images: nothing must be resumed from those."""
    if not (source / "dev.json").is_file():
        raise DataError(f"--data: {source} has no train.json and dev.json; see README.md")
    parts = dict(zip(("train", "test"), split_fold(source, cell), strict=True))
    texts = {f"{key}.json": json.dumps(part) for key, part in {"cell": cell, **parts}.items()}
    if any(
        (folder / file).read_text() != text
        for file, text in texts.items()
        if (folder / file).is_file()
    ):
        for path in set(folder.iterdir()) - {folder / "lock"}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for file, text in texts.items():
        with atomic_path(folder / file) as temporary:
            temporary.write_text(text)
    for part in parts:
        register_coco(f"{name}-{part}", folder / f"{part}.json", source / "images")
    own = {f"DATASETS.{part.upper()}": (f"{name}-{part}",) for part in parts}
    overrides = {**cell["overrides"], **own, "OUTPUT_DIR": str(folder)}
    cfg = load_config(ROOT / cell["base"], [str(x) for pair in overrides.items() for x in pair])
    cfg.SOLVER.OPTIMIZER = cell["optimizer"]
    check_preprocessing(cfg)
    check_datasets(cfg)
    cfg.freeze()
    default_setup(cfg, argparse.Namespace())
    return cfg


class CellTrainer(Trainer):
    """The project's trainer with AdamW, costs, one checkpoint at a time and no test at the end."""

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return super().build_optimizer(cfg, model)
        optimizer = maybe_add_gradient_clipping(cfg, getattr(torch.optim, cfg.SOLVER.OPTIMIZER))
        parameters = get_default_optimizer_params(model)
        return optimizer(parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)

    def build_hooks(self) -> list[Any]:
        self.cost = StepCost()
        kept = [one for one in super().build_hooks() if not isinstance(one, hooks.EvalHook)]
        for one in kept:
            if isinstance(one, hooks.PeriodicCheckpointer):
                one.max_to_keep = 1
        return [self.cost, *kept]  # first: neither checkpoints nor log lines are counted


class StepCost(HookBase):
    """Counts the processor time of the steps, their images included, over all resumes."""

    def __init__(self) -> None:
        self.steps, self.seconds, self.peak = 0, 0.0, 0.0

    def before_step(self) -> None:
        self._start = time.process_time()

    def after_step(self) -> None:
        self.steps += 1
        self.seconds += time.process_time() - self._start
        self.peak = max(self.peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    def state_dict(self) -> dict[str, float]:
        return {"steps": self.steps, "processor_seconds": self.seconds, "peak_mib": self.peak}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.steps, self.seconds, self.peak = state.values()


def measure_widths(trainer: CellTrainer, cell: dict[str, Any]) -> dict[str, dict]:
    """Returns a trained detector's AP by width: ``metrics`` with the full network's statistics,
    cut; ``matched`` with the norms' moments matched to the full network's on training images."""
    cfg, model, batches = trainer.cfg, trainer.model.eval(), []
    backbone = slimmable_part(model.backbone)
    if cell["match"]:
        loader = islice(trainer.build_train_loader(cfg), cell["match"])
        batches = [model.preprocess_image(batch).tensor for batch in loader]
        moments = measure_moments(backbone, batches)

    def test() -> dict[str, dict[str, float]]:
        tasks = trainer.test(cfg, model).items()
        names = ("AP", "AP50", "AP75")  # NaN where nothing is found
        return {
            t: {k: 0.0 if math.isnan(of[k]) else round(of[k], 3) for k in names} for t, of in tasks
        }

    metrics, matched = {}, {}
    for width in cell["widths"]:
        with at_width(backbone, width, norm="frozen", divisor=cell["divisor"]):
            metrics[f"{width:g}"] = test()
            if batches and width < 1:
                recalibrate(backbone, batches, moments)
                matched[f"{width:g}"] = test()
    return {"metrics": metrics, "matched": matched}
