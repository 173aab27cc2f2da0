"""The process that watches: starts readers, and notices when one hangs or dies."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.fuzzing.reader import INPUT_SECONDS
from tests.faults.fuzzing.report import Report

ROOT = Path(__file__).resolve().parents[3]
READER = [sys.executable, "-m", "tests.faults.fuzzing"]


def watch(name: str, minutes: float, first_seed: int, keep: Path) -> Report:
    """Runs readers of a target for some minutes; a new one for each that hangs or dies.

    Args:
        name: of the target.
        minutes: that it takes.
        first_seed: the same one draws the same inputs.
        keep: folder for the inputs of what is found.
    """
    report = Report(name, minutes, first_seed)
    start = time.monotonic()
    until = start + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="gradaug_fuzz_") as temporary:
        while time.monotonic() < until:
            folder = Path(temporary) / f"{report.restarts}"
            folder.mkdir()
            reason = follow(report, folder, first_seed + 100_000 * report.restarts, until, keep)
            if reason is None:
                break
            report.note({"finding": reason, "at": reason}, folder, keep)
            report.restarts += 1
    report.seconds = time.monotonic() - start
    return report


def follow(report: Report, folder: Path, seed: int, until: float, keep: Path) -> str | None:
    """Counts a reader's answers until the time is over; returns the reason if it ended before."""
    command = [*READER, report.target, "--read", str(folder), "--seed", str(seed)]
    errors = folder / "stderr"
    with (
        errors.open("wb") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT) as reader,
    ):
        assert reader.stdout is not None
        os.set_blocking(reader.stdout.fileno(), False)
        pending, begun, heard = b"", False, time.monotonic()
        try:
            while time.monotonic() < until:
                ready, _, _ = select.select([reader.stdout], [], [], 0.5)
                data = reader.stdout.read() if ready else None
                if data == b"":
                    code = reader.wait()
                    tail = errors.read_text("utf-8", "replace").strip().splitlines()[-1:]
                    return f"the process died with exit code {code} {' '.join(tail)}".strip()
                if data:
                    heard = time.monotonic()
                    *lines, pending = (pending + data).split(b"\n")
                    for answer in map(json.loads, lines):
                        begun = "begin" in answer
                        if not begun:
                            report.count(answer, folder, keep)
                # Before its first input a reader imports frameworks.
                elif time.monotonic() - heard > (INPUT_SECONDS if begun else 12 * INPUT_SECONDS):
                    return f"an input took more than {INPUT_SECONDS:g} s"
            return None
        finally:
            reader.kill()
