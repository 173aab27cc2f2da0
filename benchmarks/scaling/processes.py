"""Steps of Detectron2 in one process, in two side by side and in two that average gradients."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.training.trainings import training_class
from benchmarks.training.workload import Variant, Workload
from gradaug_det.core.gradients import average_gradients
from gradaug_det.core.processes import Meeting

MODES = ("alone", "side by side", "together")


def step_times(workload: Workload, variants: list[Variant], steps: int) -> dict[str, Any]:
    """Wall time of steps with one thread a process, and of the averaging of gradients in itself.

    Args:
        workload: each process has such a batch of its own.
        steps: of each variant, in turns; the first of them does not count.

    Returns:
        By mode (:data:`MODES`) and variant the median seconds of a step. Processes begin a step
        together, and it takes what the slower one takes, whichever that is;
        ``all_reduce``: of :func:`gradaug_det.core.gradients.average_gradients` alone.
    """
    results: dict[str, Any] = {}
    for mode in MODES:
        processes = 1 if mode == "alone" else 2
        meeting = mp.get_context("spawn").Barrier(processes)
        with tempfile.TemporaryDirectory() as folder:
            arguments = (meeting, mode == "together", folder, workload, variants, steps)
            mp.spawn(_process, arguments, nprocs=processes)
            found = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(processes)]
        # The faster process waits for the slower one where they meet, in each mode alike.
        times = {
            name: median(map(max, zip(*(one[name] for one in found), strict=True)))
            for name in found[0]
        }
        if mode == "together":
            results["all_reduce"] = times.pop("all_reduce")
        results[mode] = times
    return results


def _process(
    rank: int,
    meeting: Any,
    joined: bool,
    folder: str,
    workload: Workload,
    variants: list[Variant],
    steps: int,
) -> None:
    torch.set_num_threads(1)
    if joined:
        where = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
    trainings = {v.name: training_class(workload.task)(workload, v) for v in variants}
    times: dict[str, list[float]] = {name: [] for name in trainings}
    for iteration in range(steps):
        for name, training in trainings.items():
            torch.manual_seed(iteration)
            times[name].append(_time_run(lambda t=training, i=iteration: t.step(i), meeting))
    if joined:
        model, host = trainings[variants[0].name].model, Meeting()
        times["all_reduce"] = [
            _time_run(lambda: average_gradients(model, host), meeting) for _ in range(steps)
        ]
    # The first step of each allocates, and prepares kernels.
    torch.save({name: own[1:] for name, own in times.items()}, Path(folder) / f"{rank}.pt")
    if joined:
        dist.destroy_process_group()


def _time_run(run: Callable[[], object], meeting: Any) -> float:
    """Returns the seconds from when all processes have come to the meeting."""
    meeting.wait()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
