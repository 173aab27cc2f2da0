"""The most memory that tensors took while something ran."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_growth(run: Callable[[], object], device: torch.device) -> int | None:
    """Most tensor memory beyond what was there before, in bytes; None where nobody can tell.

    On a CPU from the allocator's own records, which unlike the process's size are the same every
    time. What libraries allocate for themselves (oneDNN's scratch memory) is not in them, nor is
    what ``run`` frees of the memory that was there before.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    return _cpu_peak(run) if device.type == "cpu" else None


def _cpu_peak(run: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    size = peak = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        size += event.nbytes()
        peak = max(peak, size)
    return peak
