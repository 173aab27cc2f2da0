"""Trainings that die, are told to go, or cannot write: nothing is lost, and nothing half-written is
taken for a checkpoint. ``python -m tests.faults.killing`` kills each at 20 points."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from gradaug_det.core.preemption import EXIT_CODE
from tests.faults.killing import (
    LIMIT,
    attempt,
    being_written,
    compare,
    context,
    finish,
    kill,
    processes_with,
    start,
    steps_done,
)
from tests.faults.trainings import ROOT, TRAININGS, losses, weights

pytestmark = pytest.mark.integration
ENGINES = pytest.mark.parametrize("name", TRAININGS)


def expected(name, whole):
    folder = whole(name)
    found = losses(folder), weights(folder / TRAININGS[name][1])
    assert sorted(found[0]) == list(range(len(found[0]))), "a step was not noted"
    return found


@ENGINES
def test_killed_while_saving_and_in_a_step_then_resumed(name, whole, faults_data, tmp_path):
    folder, rng = tmp_path / name, random.Random(0)
    assert kill(start(name, folder, faults_data), folder, "saving", rng)
    assert being_written(folder), "it was not saving"
    assert kill(start(name, folder, faults_data), folder, 4, rng)
    assert steps_done(folder) >= 4
    assert finish(start(name, folder, faults_data)) == 0
    assert compare(expected(name, whole), folder, TRAININGS[name][1]) == []
    assert not being_written(folder), "half-written files take room for ever"


@pytest.mark.parametrize(
    ("name", "workers", "signals"),
    [
        ("Detectron2", 0, 1),
        ("Detectron2", 0, 2),
        ("Detectron2", 2, 1),
        ("Detectron2", 2, 2),
        ("MMDetection", 0, 2),
        ("MMDetection", 2, 1),
        ("pretraining", 2, 2),
    ],
)
def test_torchrun_told_to_go(name, workers, signals, whole, faults_data, tmp_path):
    """Within an epoch, and between the steps at which it would have saved; the second signal comes
    while it saves, also to the training's process group."""
    folder = tmp_path / name
    folder.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    command += ["-m", "tests.faults.told", name, folder, faults_data, workers]
    mark = f"GRADAUG_TOLD={tmp_path}"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env={**os.environ, **dict([mark.split("=", 1)])},
            stdout=log,
            stderr=log,
        )
    until(lambda: steps_done(folder) or process.poll() is not None)
    process.terminate()
    if signals == 2:
        until(lambda: being_written(folder) or (folder / "exit").is_file())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int((folder / "pid").read_text()), signal.SIGTERM)
        process.terminate()
    process.wait(LIMIT)
    until(lambda: not processes_with(mark), 20)
    assert (folder / "exit").read_text() == str(EXIT_CODE), (tmp_path / "log").read_text()
    done, reference = steps_done(folder), expected(name, whole)
    assert 0 < done < len(reference[0]) and checkpoints(folder)
    assert finish(start(name, folder, faults_data)) == 0
    assert steps_done(folder) == len(reference[0]), f"steps after {done} were done again"
    assert compare(reference, folder, TRAININGS[name][1]) == []


@ENGINES
def test_a_disk_that_takes_no_more(name, whole, faults_data, tmp_path):
    folder = tmp_path / name
    alone = {"workers": 0}  # who would share memory by files, which are limited too
    assert kill(start(name, folder, faults_data, **alone), folder, 4, random.Random(0))
    kept = {path: path.read_bytes() for path in checkpoints(folder)}
    assert kept
    limited = {"errors": tmp_path / "errors", "most_bytes": 2**20}
    process = start(name, folder, faults_data, **limited, **alone)
    assert finish(process) == 1
    text = (tmp_path / "errors").read_text()
    assert re.search(
        r"GradAugError: the checkpoint .* could not be written: (File too large|the file system "
        r"took only a part of it); \d+ MiB are free there\. What was saved before is intact",
        text,
    )
    assert {path: path.read_bytes() for path in checkpoints(folder)} == kept
    assert finish(start(name, folder, faults_data, **alone)) == 0
    assert compare(expected(name, whole), folder, TRAININGS[name][1]) == []


@ENGINES
def test_a_folder_that_cannot_be_written_to(name, faults_data, tmp_path):
    """Root may write everywhere but where there is no disk."""
    errors = tmp_path / "errors"
    process = context().Process(
        target=attempt, args=(name, "/proc/gradaug", faults_data), kwargs={"errors": errors}
    )
    process.start()
    assert finish(process) == 1
    sentence = "GradAugError: nothing can be written to the output folder /proc/gradaug: No such"
    assert sentence in errors.read_text()


def checkpoints(folder):
    return [p for p in folder.iterdir() if p.suffix in (".pth", ".ckpt") and p.name[0] != "."]


def until(condition, limit=LIMIT):
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)
