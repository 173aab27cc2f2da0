"""Training and testing the cells, each in a process of its own; goes on where it was stopped."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, default_setup, hooks
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from gradaug_det.core.slimming import at_width
from gradaug_det.core.transforms import BatchTransform
from gradaug_det.d2.backbone import slimmable_part, slimmed_part
from gradaug_det.d2.batch import Batch, transform_batch
from gradaug_det.d2.config import load_config
from gradaug_det.d2.data import check_datasets, register_coco
from gradaug_det.d2.detector import GradAugDetector
from gradaug_det.d2.preprocessing import check_preprocessing
from gradaug_det.d2.train import Trainer
from gradaug_det.errors import DataError, GradAugError
from gradaug_det.export.calibration import measure_moments, recalibrate
from gradaug_det.utils.environment import describe_environment
from gradaug_det.utils.files import atomic_path
from studies.real_photos.study import TASKS, split_fold

ROOT = Path(__file__).resolve().parents[2]


def train_cells(names: Sequence[str], arguments: Sequence[str], logs: Path, jobs: int) -> bool:
    """Runs ``cell NAME`` with these arguments for each name, ``jobs`` at a time; returns whether
    all went well."""
    command = [sys.executable, "-W", "ignore", "-m", "studies.real_photos", "cell"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    logs.mkdir(parents=True, exist_ok=True)

    def train(name: str) -> bool:
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        with (logs / f"{name}.log").open("a") as log:
            settings = {"cwd": ROOT, "env": environment, "stdout": log, "stderr": log}
            if code := subprocess.run([*command, name, *arguments], **settings).returncode:
                print(f"exit code {code}: see {log.name}", flush=True)
        return not code

    with ThreadPoolExecutor(jobs) as pool:
        return all(list(pool.map(train, names)))


def train_cell(name: str, cell: dict[str, Any], data: Path, out: Path, results: Path) -> Path:
    """Trains a cell of :func:`.study.read_cells`, or goes on with it; tests it and writes its
    result, whose path is returned. In ``out`` it has a folder, in which its weights stay."""
    cfg = prepare_cell(name, cell, data / cell["set"], out)
    folder, result = Path(cfg.OUTPUT_DIR), results / f"{name}.json"
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GradAugError(f"{name} is being trained by another process") from None
        trainer = CellTrainer(cfg, cell.get("ema", 0))
        if cell.get("views") == "own":
            loader = trainer.data_loader
            loader.mapper = TwoViews(loader.mapper)
            GradAugDetector.transform = second_view  # of all in this process
        trainer.resume_or_load(resume=True)
        trainer.train()
        if trainer.average:
            trainer.model.load_state_dict(trainer.average.model.module.state_dict())
        environment = describe_environment()
        command = "python -m studies.real_photos train --data DATA --only"
        record = {
            "settings": cell,
            "ap": measure_widths(trainer, cell),
            **trainer.steps.cost,
            **{"commit": environment["git_commit"], "machine": environment["cpu"]},
            **{"torch": torch.__version__, "command": f"{command} '^{name}$'"},
        }
        with atomic_path(folder / "model.pth") as temporary:
            torch.save({"model": trainer.model.state_dict()}, temporary)
        with atomic_path(result) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        for checkpoint in [*folder.glob("model_*.pth"), folder / "last_checkpoint"]:
            checkpoint.unlink(missing_ok=True)
    return result


def prepare_cell(name: str, cell: dict[str, Any], source: Path, out: Path) -> CfgNode:
    """Writes a cell's annotations and returns its config, whose folder has a name that belongs to
    these settings and images: nothing is resumed from others."""
    if not (source / "dev.json").is_file():
        raise DataError(f"--data: {source} has no train.json and dev.json; see README.md")
    texts = [json.dumps(part) for part in split_fold(source, cell)]
    digest = hashlib.sha256("".join([json.dumps(cell), *texts]).encode()).hexdigest()
    folder = out / f"{name}-{digest[:8]}"
    overrides = {**cell["overrides"], "SOLVER.OPTIMIZER": cell["optimizer"]}
    overrides["OUTPUT_DIR"] = str(folder)
    for part, text in zip(("train", "test"), texts, strict=True):
        with atomic_path(folder / f"{part}.json") as temporary:
            temporary.write_text(text)
        register_coco(f"{folder.name}-{part}", folder / f"{part}.json", source / "images")
        overrides[f"DATASETS.{part.upper()}"] = (f"{folder.name}-{part}",)
    cfg = load_config(ROOT / cell["base"], [str(x) for pair in overrides.items() for x in pair])
    check_preprocessing(cfg)
    check_datasets(cfg)
    cfg.freeze()
    default_setup(cfg, argparse.Namespace())
    return cfg


class CellTrainer(Trainer):
    """The project's trainer with costs, one checkpoint at a time and no test at the end."""

    def __init__(self, cfg: CfgNode, ema: float = 0) -> None:
        self._ema = ema  # for build_hooks, which is called below
        super().__init__(cfg)

    def build_hooks(self) -> list[Any]:
        self.steps = StepCost()
        kept = [one for one in super().build_hooks() if not isinstance(one, hooks.EvalHook)]
        for one in kept:
            if isinstance(one, hooks.PeriodicCheckpointer):
                one.max_to_keep = 1
        self.average = WeightAverage(self.model, self._ema) if self._ema else None
        kept = [self.average, *kept] if self.average else kept
        return [self.steps, *kept]  # first: neither checkpoints nor log lines are counted


class StepCost(HookBase):
    """Counts the processor time of the steps, their images included, over all resumes."""

    def __init__(self) -> None:
        self.cost = {"steps": 0, "processor_seconds": 0.0, "peak_mib": 0.0}

    def before_step(self) -> None:
        self._start = time.process_time()

    def after_step(self) -> None:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.cost["steps"] += 1
        self.cost["processor_seconds"] += time.process_time() - self._start
        self.cost["peak_mib"] = max(self.cost["peak_mib"], memory)

    def state_dict(self) -> dict[str, float]:
        return self.cost

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.cost = dict(state)


class WeightAverage(HookBase):
    """An exponential moving average of the weights, in checkpoints too."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))

    def after_step(self) -> None:
        self.model.update_parameters(self.trainer.model)

    def state_dict(self) -> dict[str, Any]:
        return self.model.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state)


@dataclass
class TwoViews:
    """Reads an image twice, with its own size, crop and mirroring each time."""

    mapper: Callable[[dict], dict]

    def __call__(self, record: dict) -> dict:
        return {**self.mapper(record), "view": self.mapper(record)}


def second_view(detector: GradAugDetector, batch: Batch, transform: BatchTransform) -> Batch:
    """Returns the batch that an added pass sees, in place of a transformed one."""
    return transform_batch([item["view"] for item in batch], transform, detector.options)


def measure_widths(trainer: CellTrainer, cell: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Returns a trained detector's AP by what is cut, ``backbone`` or ``detector``, with the norms'
    moments matched or not, and by task and width. Others than controls are cut as in training."""
    cfg, model = trainer.cfg, trainer.model.eval()
    backbone = slimmable_part(model.backbone)
    loader = islice(trainer.build_train_loader(cfg), cell["match"])
    batches = [model.preprocess_image(batch).tensor for batch in loader]
    moments = measure_moments(backbone, batches) if batches else []

    def test(width: float) -> dict[str, float]:
        tested = trainer.test(cfg, model).items()  # NaN where nothing is found
        aps = {f"{TASKS[task]} {width:g}": metrics["AP"] for task, metrics in tested}
        return {key: 0.0 if math.isnan(ap) else round(ap, 3) for key, ap in aps.items()}

    found: dict[str, dict[str, float]] = defaultdict(dict)
    for cut in ("backbone", "detector") if batches else (cfg.GRADAUG.SLIM,):
        slimmed = slimmed_part(model, cut)
        for width in cell["widths"]:
            with at_width(slimmed, width, norm="frozen", divisor=cell["divisor"]):
                found[cut] |= test(width)
                if batches and width < 1:
                    recalibrate(backbone, batches, moments)
                    found[f"{cut}, matched"] |= test(width)
    return found
