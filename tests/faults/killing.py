"""Kills trainings with SIGKILL at random points, resumes them and compares with one left alone.

    python -m tests.faults.killing --points 20 --publish

A point is "while saving" (a checkpoint's temporary file has just appeared) or some time after a
given number of steps, 0 included: then models are being built or states loaded.
"""

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gradaug_det.utils.files import atomic_path
from tests.faults.trainings import STEPS, TRAININGS, losses, weights

ROOT = Path(__file__).resolve().parents[2]
PAGE = "docs/faults/kills.md"
RESULT = "tests/faults/results/kills.json"
LIMIT = 300
"""Seconds that an attempt may take."""
PRELOADED = ["gradaug_det.d2.train", "gradaug_det.mmdet.train", "gradaug_det.pretrain.engine"]


@dataclass
class Outcome:
    """The fate of one engine's trainings.

    Args:
        points: kills.
        saving: of them while a checkpoint was being written.
        building: of them before the first step of an attempt.
        partial: half-written files that killed processes left, none of them under a final name.
        trainings: brought to their end.
        repeated: steps that were done again after a resume; their losses were the same.
        differences: what was not as without kills; must be empty.
    """

    points: int = 0
    saving: int = 0
    building: int = 0
    partial: int = 0
    trainings: int = 0
    repeated: int = 0
    differences: list[str] = field(default_factory=list)


def context():
    """Processes that have the frameworks imported when they start."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(PRELOADED)
    return made


def attempt(name, folder, data, errors=None, most_bytes=None, **options):
    """The body of a process: one training, resumed if it was begun.

    Args:
        errors: file for what it says on stderr.
        most_bytes: that a file of its can have; the operating system refuses more.
    """
    os.setpgrp()  # with the workers that load its images
    multiprocessing.set_start_method("fork", force=True)  # which those are started by
    logging.disable(logging.WARNING)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if errors:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    if most_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    TRAININGS[name][0](folder, data, **options)


def start(name, folder, data, **options):
    Path(folder).mkdir(parents=True, exist_ok=True)
    process = context().Process(target=attempt, args=(name, folder, data), kwargs=options)
    process.start()
    return process


def finish(process):
    """Waits for the end; returns the exit code."""
    process.join(LIMIT)
    if process.is_alive():
        kill_all(process)
        raise AssertionError(f"no end after {LIMIT} s")
    return process.exitcode


def kill_all(process):
    """PyTorch's workers can outlive a process that is killed alone."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has no group of its own yet
        process.kill()


def steps_done(folder):
    file = Path(folder) / "losses.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def being_written(folder):
    return list(Path(folder).glob(".partial.*"))


def kill(process, folder, when, rng):
    """Kills at a point; returns whether it came before the end."""
    before, left = steps_done(folder), set(being_written(folder))
    deadline = time.monotonic() + LIMIT
    while process.is_alive() and time.monotonic() < deadline:
        if when == "saving" and set(being_written(folder)) - left:
            break
        if when != "saving" and steps_done(folder) - before >= when:
            time.sleep(rng.uniform(0, 2.0 if when == 0 else 0.3))
            break
        time.sleep(0.0005)
    if process.is_alive():
        kill_all(process)
    process.join(LIMIT)
    return process.exitcode == -signal.SIGKILL


def processes_with(mark):
    """Returns the processes that have it in their environment."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended
            if mark.encode() in environ.read_bytes():
                found.append(environ.parent.name)
    return found


def torture(name, data, folder, points, seed=0):
    """Trains one engine's training over and over until it was killed ``points`` times.

    Raises:
        AssertionError: a training that was left alone fails.
    """
    rng, folder, outcome = random.Random(seed), Path(folder), Outcome()
    final = TRAININGS[name][1]
    assert finish(start(name, folder / "whole", data)) == 0, f"{name} fails without being killed"
    expected = losses(folder / "whole"), weights(folder / "whole" / final)
    assert sorted(expected[0]) == list(range(len(expected[0]))), "a step was not noted"
    number = 0
    while outcome.points < points:
        own = folder / f"killed{number}"
        number += 1
        while outcome.points < points:
            when = rng.choice(["saving", "saving", 0, 1, 2, 3, 4, 5])
            process = start(name, own, data)
            if not kill(process, own, when, rng):
                break
            outcome.points += 1
            outcome.saving += when == "saving"
            outcome.building += when == 0
            outcome.partial += len(being_written(own))
        if process.exitcode not in (0, -signal.SIGKILL):
            outcome.differences.append(f"exit code {process.exitcode} in {own.name}")
            continue
        if finish(start(name, own, data)) != 0:
            outcome.differences.append(f"{own.name} cannot be resumed")
            continue
        outcome.trainings += 1
        outcome.repeated += steps_done(own) - len(expected[0])
        try:
            outcome.differences += compare(expected, own, final)
        except AssertionError as error:
            outcome.differences.append(f"{own.name}: {error}")
    return outcome


def compare(expected, folder, final):
    """Returns what differs from the training that was left alone, bit by bit."""
    found = losses(folder), weights(folder / final)
    different = [
        f"{folder.name}: step {k}" for k in expected[0] if expected[0][k] != found[0].get(k)
    ]
    different += [
        f"{folder.name}: {key}"
        for key, value in expected[1].items()
        if key not in found[1] or not value.equal(found[1][key])
    ]
    return different


def write(outcomes, seconds):
    """A table in Markdown and JSON."""
    columns = ("killed", "while saving", "while building", "half-written files left")
    columns += ("trainings finished", "steps done again", "losses or weights that differ")
    lines = [
        "# Trainings that were killed",
        "",
        f"`python -m tests.faults.killing --points {max(o.points for o in outcomes.values())}`: "
        f"trainings of {STEPS} steps or more, a checkpoint every third, are killed",
        "with SIGKILL at random points, resumed, killed again, and at last compared with one that "
        "was left alone: every logged",
        "loss of every step, all weights, statistics and momentum, bit by bit.",
        "",
        "| training | " + " | ".join(columns) + " |",
        "|:--|" + "--:|" * len(columns),
    ]
    for name, o in outcomes.items():
        cells = (o.points, o.saving, o.building, o.partial, o.trainings, o.repeated)
        lines.append(f"| {name} | {' | '.join(map(str, (*cells, len(o.differences))))} |")
    content = {"seconds": round(seconds), "engines": {n: asdict(o) for n, o in outcomes.items()}}
    for path, text in ((PAGE, "\n".join(lines) + "\n"), (RESULT, json.dumps(content, indent=1))):
        with atomic_path(ROOT / path) as temporary:
            temporary.write_text(text)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=20, help="kills of each training")
    parser.add_argument("--only", choices=TRAININGS, nargs="+", default=list(TRAININGS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--publish", action="store_true", help=f"write {PAGE} and {RESULT}")
    args = parser.parse_args(argv)
    from gradaug_det.mini_coco import build_mini_coco

    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        data = build_mini_coco(Path(folder) / "mini_coco", train=12, val=2)
        outcomes = {}
        for name in args.only:
            outcomes[name] = torture(name, data, Path(folder) / name, args.points, args.seed)
            print(name, outcomes[name], flush=True)  # noqa: T201
    if args.publish:
        write(outcomes, time.monotonic() - begin)
    return any(o.differences for o in outcomes.values())


if __name__ == "__main__":
    sys.exit(main())
