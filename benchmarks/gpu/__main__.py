"""GradAug on this machine's GPU: is it right, how fast is it, and what does it wait for.

Needs Detectron2 (MMDetection is checked where it is there), no network and at most 8 minutes. Its
parts have a time of their own: gradients beside the CPU's, time and memory of steps,
synchronizations, a profile. What is not reached is said; what fails is a row with its error.
Writes gpu.json and gpu.md. With --device cpu everything is tried on tiny shapes.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.backends import backends
from benchmarks.gpu.checks import CHECKS, CONFIGS, process_count
from benchmarks.gpu.report import write_report
from benchmarks.gpu.steps import ADDED, PLAIN, WIDTHS, measure_steps, settings
from benchmarks.gpu.waits import count_waits
from benchmarks.training.measure import profile_step
from benchmarks.training.workload import ALTERNATING, Workload
from gradaug_det.d2.checks import check_device
from gradaug_det.errors import GradAugError
from gradaug_det.utils.environment import describe_environment

LIMIT = 480  # seconds
SECONDS = {"checks": 100, "steps": 240, "waits": 40, "profile": 30}
"""In which a part begins rows: the rest is for rows that were begun."""
MOST_TRIED = 6  # rows of a part in a dry run

Row = Callable[[float], dict[str, Any]]  # takes the part's deadline
logger = logging.getLogger(__name__)


def rows_of(part: str, workload: Workload) -> Iterator[tuple[str, Row]]:
    """Yields the names of a part's rows and how each is found, the most important one first."""
    if part == "checks":
        for name, check in CHECKS.items():
            yield name, lambda _, check=check: check(workload.device)
    elif part == "steps":
        batches, rounds = ((1, 2), 1) if workload.small else ((2, 8), 4)
        for one in settings(*batches):
            own = replace(workload, batch_size=one.batch, options=WIDTHS[one.widths])
            yield one.name, partial(measure_steps, one, own, rounds)
    elif part == "waits":
        for variant in (PLAIN, ADDED, ALTERNATING):
            yield variant.name, lambda _, v=variant: count_waits(workload, v)
    else:
        yield ADDED.name, lambda _: {"table": _profile(workload)}


def _profile(workload: Workload) -> str:
    with backends(tf32=True):
        table = profile_step(workload, ADDED)
    return "\n".join(line.rstrip() for line in table.splitlines())


def run(device: str, out: Path) -> dict[str, Any]:
    """Finds all rows, and writes the report after each of them.

    Returns:
        Device, versions and ``parts``: part -> row -> what was found, ``error``, or
        ``not_reached`` and why.
    """
    dry = torch.device(device).type != "cuda"
    size = (64, 64) if dry else (800, 1333)
    workload = Workload("detectron2", CONFIGS, size, 1 if dry else 2, small=dry, device=device)
    parts: dict[str, dict[str, Any]] = {part: {} for part in SECONDS}
    content = {
        "environment": describe_environment(),
        "device": device,
        "dry": dry,
        "processes": process_count(device),
        "size": size,
        "cuda": None if dry else torch.version.cuda,
        "cudnn": None if dry else torch.backends.cudnn.version(),
        "parts": parts,
    }
    for part, seconds in SECONDS.items():
        deadline = time.monotonic() + seconds
        for number, (name, find) in enumerate(rows_of(part, workload)):
            enough = dry and number >= MOST_TRIED
            if enough or time.monotonic() > deadline:
                reason = "this is a dry run" if enough else f"this part had {seconds} s"
                parts[part][name] = {"not_reached": reason}
                continue
            logger.info("%s: %s", part, name)
            try:
                parts[part][name] = find(deadline)
            except Exception as error:  # of whatever kind: it is what the row says
                parts[part][name] = {"error": f"{type(error).__name__}: {error}"}
            gc.collect()
            if not dry:
                torch.cuda.empty_cache()
            write_report(out, content)
    write_report(out, content)
    return content


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="of torch (cuda); cpu tries it all")
    parser.add_argument("--out", type=Path, default=Path("report/gpu"), metavar="DIR")
    args = parser.parse_args(argv)
    try:
        check_device("--device", args.device)
    except GradAugError as error:
        sys.exit(f"error: {error}")
    # PyTorch's profiler reports a missing GPU as an error.
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # A device that hangs is not waited for: the report has the rows before.
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=sys.__stderr__)
    try:
        run(args.device, args.out)
    finally:
        faulthandler.cancel_dump_traceback_later()
    print(args.out / "gpu.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
