"""What makes the host wait for its device in a step."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.host_reads import HostReads
from benchmarks.training.trainings import training_class
from benchmarks.training.workload import Variant, Workload

MESSAGE = "called a synchronizing CUDA operation"


@contextmanager
def synchronizations() -> Iterator[Counter[str]]:
    """Within the block, counts PyTorch's warnings of them by the innermost module that calls it."""
    found: Counter[str] = Counter()

    def note(message: Warning, *_: Any, **__: Any) -> None:
        if MESSAGE in str(message):
            frame = sys._getframe(1)
            while frame.f_globals["__name__"].partition(".")[0] in ("torch", "warnings"):
                frame = frame.f_back
            found[frame.f_globals["__name__"]] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        yield found


def count_waits(workload: Workload, variant: Variant) -> dict[str, Any]:
    """Counts the synchronizations of a step; on a CPU, gradaug_det's reads of values.

    Returns:
        ``where``: module (on a CPU, file and line) -> times; ``own``: those of gradaug_det.
    """
    training = training_class(workload.task)(workload, variant)
    training.step(0)
    if torch.device(workload.device).type == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with synchronizations() as where:
                training.step(1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    else:
        with HostReads() as reads:
            training.step(1)
        where = {f"gradaug_det/{line}": times for line, times in reads.found.items()}
    own = sum(times for name, times in where.items() if name.startswith("gradaug_det"))
    return {"where": dict(where), "own": own}
