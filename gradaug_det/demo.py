"""The demonstration: a detector fine-tuned with and without GradAug, compared in a report.

Each part is skipped when it was done with the same settings, and resumed when it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from gradaug_det.datasets import build_mini_coco
from gradaug_det.errors import GradAugError
from gradaug_det.evaluation.coco import evaluate_coco
from gradaug_det.evaluation.curves import read_detectron2_metrics
from gradaug_det.evaluation.environment import describe_environment
from gradaug_det.evaluation.records import Report, RunRecord
from gradaug_det.evaluation.report import write_report
from gradaug_det.files import atomic_path
from gradaug_det.pretrain.mini import MiniPretraining, pretrain_mini

logger = logging.getLogger(__name__)

LABELS = {"plain": "Plain fine-tuning", "gradaug": "GradAug fine-tuning"}


@dataclass(frozen=True)
class DemoSettings:
    """Size of the demonstration; the defaults train for about 10 minutes on 2 CPU cores.

    Args:
        train, val: images of mini-COCO.
        iterations: of each fine-tuning, at 4 images a step.
        pretraining: of the backbone that both start from.
        seed: of data, pretraining and fine-tuning.
        opts: further KEY VALUE overrides of both fine-tunings.
    """

    train: int = 400
    val: int = 200
    iterations: int = 200
    pretraining: MiniPretraining = field(default_factory=lambda: MiniPretraining(epochs=3, crop=48))
    seed: int = 1
    opts: tuple[str, ...] = ()


def run_demo(
    out: str | Path, report_folder: str | Path, root: str | Path, settings: DemoSettings
) -> Path:
    """Runs what is missing and writes the report.

    Args:
        out: folder for data, backbone and trainings.
        report_folder: folder for the report.
        root: the project's folder, with ``tools`` and ``configs``.

    Returns:
        Path of the report's ``index.html``.

    Raises:
        GradAugError: a training failed; names its log.
    """
    out, root = Path(out).resolve(), Path(root)
    clock = time.perf_counter()

    def say(what: str) -> None:
        logger.info("[%4.0f s] %s", time.perf_counter() - clock, what)

    say(f"1/4 mini-COCO: {settings.train} train and {settings.val} val images (about a minute)")
    data = build_mini_coco(
        out / "datasets" / "mini_coco", settings.train, settings.val, seed=settings.seed
    )
    say("2/4 backbone: GradAug pretraining on garments (about 2 minutes on 2 cores)")
    backbone = out / "backbone.pth"
    pretrained = pretrain_mini(backbone, settings.pretraining)
    say(f"    {pretrained['top1']:.1f} % of held-out garments right")
    runs, commands = [], []
    for step, (name, minutes) in enumerate((("plain", 2), ("gradaug", 5)), start=3):
        say(
            f"{step}/4 {LABELS[name].lower()}, {settings.iterations} iterations "
            f"(about {minutes} minutes on 2 cores)"
        )
        config = f"configs/detectron2/mini_mask_rcnn_R_18_FPN_{name}.yaml"
        overrides = [
            *("MODEL.WEIGHTS", str(backbone)),
            *("OUTPUT_DIR", str(out / name)),
            *("SOLVER.MAX_ITER", str(settings.iterations)),
            *("SOLVER.STEPS", f"({settings.iterations * 3 // 4},)"),
            *("SEED", str(settings.seed)),
            *settings.opts,
        ]
        command = ["tools/train_net.py", "--resume", "--config-file", config, *overrides]
        commands.append("python " + " ".join(command).replace(str(out), "output/demo"))
        seconds = _train(command, root, out / name, out / "datasets")
        runs.append(_record(name, config, settings, out / name, data, seconds))
    report = Report(
        title="GradAug on mini-COCO: Mask R-CNN, ResNet-18-FPN, Detectron2",
        runs=runs,
        baseline="plain",
        gt_json=data / "annotations" / "instances_val.json",
        image_root=data / "val",
        environment=describe_environment(),
        commands=commands,
        dataset="mini-COCO val",
        introduction=(
            "Both detectors start from one backbone, pretrained with GradAug on the same kind of "
            f"garments ({pretrained['top1']:.1f} % top-1), and see the same batches. Only the "
            "second adds GradAug's sub-networks to each fine-tuning step."
        ),
    )
    index = write_report(report_folder, report)
    say(f"report: {index}")
    return index


def _train(command: list[str], root: Path, folder: Path, datasets: Path) -> float:
    """Runs a training unless it is done; returns its seconds (over all its attempts)."""
    done = folder / "done.json"
    key = hashlib.sha256("\0".join(command).encode()).hexdigest()
    state = json.loads(done.read_text()) if done.is_file() else {"key": None, "seconds": 0.0}
    if state["key"] == key and state.get("finished"):
        return state["seconds"]
    if state["key"] != key:
        state = {"key": key, "seconds": 0.0}
        # Another setting's checkpoints must not be resumed from.
        for stale in (*folder.glob("*.pth"), folder / "last_checkpoint", folder / "metrics.json"):
            stale.unlink(missing_ok=True)
    _write_json(done, state)
    start = time.perf_counter()
    try:
        _run(command, root, folder / "train.log", datasets)
        state["finished"] = True
    finally:
        state["seconds"] += time.perf_counter() - start
        _write_json(done, state)
    return state["seconds"]


def _run(command: list[str], root: Path, log: Path, datasets: Path) -> None:
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets)}
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *command],
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        tail: list[str] = []
        for line in process.stdout:
            file.write(line)
            tail = [*tail[-14:], line]
            if "eta: " in line:
                logger.info("    %s", line.split("]: ", 1)[-1].split("  data_time")[0].strip())
    if process.returncode:
        logger.error("%s", "".join(tail))
        raise GradAugError(
            f"the training ended with exit code {process.returncode}; its output is in {log}. "
            "Run the same command again: it resumes from the last checkpoint"
        )


def _record(
    name: str, config: str, settings: DemoSettings, folder: Path, data: Path, seconds: float
) -> RunRecord:
    predictions = folder / "inference" / "mini_coco_val" / "coco_instances_results.json"
    return RunRecord(
        name=name,
        label=LABELS[name],
        config=config,
        iterations=settings.iterations,
        metrics=evaluate_coco(data / "annotations" / "instances_val.json", predictions),
        curves=read_detectron2_metrics(folder / "metrics.json"),
        seconds=seconds,
        predictions=predictions,
        seed=settings.seed,
    )


def _write_json(path: Path, content: dict) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content))
