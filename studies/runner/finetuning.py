"""Running one fine-tuning as a process: left alone when done, resumed when interrupted."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from gradaug_det.errors import GradAugError
from gradaug_det.evaluation.coco import evaluate_coco
from gradaug_det.utils.files import atomic_path
from studies.report.records import RunRecord
from studies.runner.frameworks import FineTuning, Framework

logger = logging.getLogger(__name__)

_TAIL = 15  # output lines repeated when a training fails


@dataclass(frozen=True)
class Training:
    """A fine-tuning with its place in a report and on the disk.

    Args:
        name: of the run, e.g. ``gradaug-seed1``.
        method: runs with the same method are seeds of it.
        label: of the method, for readers.
        framework, job: what is run.
        folder: for everything the training writes; removed when it holds a training with other
            settings.
        data: the mini-COCO; its folder must be called ``mini_coco``.
        notes: for readers of the report.
    """

    name: str
    method: str
    label: str
    framework: Framework
    job: FineTuning
    folder: Path
    data: Path
    notes: str = ""

    @property
    def config(self) -> str:
        """The config file's path, from the project's folder."""
        return self.framework.config(self.job.method, self.job.experiment)

    def shell_line(self, out: Path, shown: str) -> str:
        """The command as one can type it in the project's folder, ``out`` spelled ``shown``."""
        arguments = shlex.join(self.framework.arguments(self.job, self.folder))
        line = (
            f"{self.framework.datasets_variable}={self.data.parent} "
            f"python {self.framework.script_in_shell} {arguments}"
        )
        return line.replace(str(out), shown)


def run_trainings(
    trainings: Sequence[Training],
    root: Path,
    *,
    jobs: int = 1,
    threads: int | None = None,
) -> list[float]:
    """Trains what is not done yet.

    Args:
        trainings: in the order to start them.
        root: the project's folder, with ``tools`` and ``configs``.
        jobs: trainings at a time.
        threads: of each training; None leaves PyTorch's default, one a core.

    Returns:
        The seconds of each, over all its attempts, in the order of ``trainings``.

    Raises:
        GradAugError: a training failed; names its log. Those that run go on to their end, no other
            is started.
    """
    stop = threading.Event()

    def finish(training: Training) -> float | None:
        if stop.is_set():
            return None
        try:
            return _finish(training, root, threads)
        except BaseException as error:
            logger.error("    %s: %s", training.name, error)
            stop.set()
            raise

    # Threads, since each only waits for its process.
    with ThreadPoolExecutor(jobs) as pool:
        try:
            futures = [pool.submit(finish, training) for training in trainings]
            wait(futures)
        finally:  # also after Ctrl-C here
            stop.set()
    return [future.result() for future in futures]


def _finish(training: Training, root: Path, threads: int | None) -> float:
    """Runs a training unless it is done; returns its seconds (over all its attempts)."""
    script = training.framework.script()
    command = [script, *training.framework.arguments(training.job, training.folder)]
    # Written before the training starts too: a folder whose key is another one's is never resumed.
    done = training.folder / "done.json"
    # Without the script's path: moving the environment does not change a result.
    settings = [*command[1:], str(training.data), _configs(training, root)]
    key = hashlib.sha256("\0".join(settings).encode()).hexdigest()
    state = json.loads(done.read_text()) if done.is_file() else {}
    if state.get("key") == key and state.get("finished"):
        return state["seconds"]
    if state.get("key") != key:
        if state:  # another setting's checkpoints must not be resumed from
            shutil.rmtree(training.folder)
        state = {"key": key, "seconds": 0.0}
    _write_json(done, state)
    logger.info("    %s: %s", training.name, "started" if not state["seconds"] else "resumed")
    start = time.perf_counter()
    try:
        _run(command, training, root, threads)
        state["finished"] = True
    finally:
        state["seconds"] += time.perf_counter() - start
        _write_json(done, state)
    return state["seconds"]


def _configs(training: Training, root: Path) -> str:
    """The training's config file, and those beside it that it names or that they name: what it
    inherits from is among them."""
    own = root / training.config
    others = {file.name: file for file in sorted(own.parent.glob("*.[py]*")) if file != own}
    texts = [own.read_text()]
    for text in texts:  # grows meanwhile
        named = [name for name in others if name in text]
        texts += [others.pop(name).read_text() for name in named]
    return "\0".join(texts)


def _run(command: list[str], training: Training, root: Path, threads: int | None) -> None:
    environment = {
        **os.environ,
        training.framework.datasets_variable: str(training.data.parent),
        **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
    }
    log = training.folder / "train.log"
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
            tail = [*tail[1 - _TAIL :], line]
            shown = training.framework.progress(line)
            if shown:
                logger.info("    %s  %s", training.name, shown)
    if process.returncode:
        logger.error("%s", "".join(tail))
        raise GradAugError(
            f"the training {training.name!r} ended with exit code {process.returncode}; its output "
            f"is in {log}. Run the same command again: it resumes from the last checkpoint"
        )


def score_training(training: Training, seconds: float) -> RunRecord:
    """Returns a finished training's record for a report."""
    predictions = training.framework.predictions(training.folder)
    truth = training.data / "annotations" / "instances_val.json"
    return RunRecord(
        name=training.name,
        label=training.label,
        config=training.config,
        iterations=training.job.iterations,
        metrics=evaluate_coco(truth, predictions),
        curves=training.framework.curves(training.folder),
        seconds=seconds,
        predictions=predictions,
        notes=training.notes,
        method=training.method,
        seed=training.job.seed,
    )


def _write_json(path: Path, content: dict) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content))
