"""Trainings that die, are told to go, or cannot write: nothing is lost, and nothing half-written is
taken for a checkpoint. ``python -m tests.faults.killing`` kills each at 20 points."""

import os
import random
import re
import signal
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
    start,
    steps_done,
)
from tests.faults.trainings import TRAININGS, losses, weights

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


@ENGINES
def test_told_to_go_it_saves_at_once_and_says_so(name, whole, faults_data, tmp_path):
    """Within an epoch, and between the steps at which it would have saved."""
    folder = tmp_path / name
    process = start(name, folder, faults_data)
    wait_for_steps(process, folder, 1)
    os.kill(process.pid, signal.SIGTERM)
    assert finish(process) == EXIT_CODE
    done = steps_done(folder)
    assert finish(start(name, folder, faults_data)) == 0
    reference = expected(name, whole)
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


def wait_for_steps(process, folder, count):
    deadline = time.monotonic() + LIMIT
    while steps_done(folder) < count:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
