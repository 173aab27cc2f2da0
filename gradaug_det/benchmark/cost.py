"""Parameters, multiply-adds, duration and memory of a detector's inference at a width."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from gradaug_det.benchmark.detector import Detector
from gradaug_det.benchmark.records import Cost
from gradaug_det.core.slimming import at_width, slim_plan
from gradaug_det.export.calibration import (
    measure_moments,
    recalibrate,
    statistics_of,
    use_statistics,
)


@contextmanager
def at_detector_width(detector: Detector, width: float) -> Iterator[None]:
    """Within the block, the detector has that width, with its own statistics sliced or matched."""
    narrow = at_width(detector.slimmed, width, "frozen", detector.divisor) if width < 1 else None
    with narrow or nullcontext():
        if width in detector.statistics:
            use_statistics(detector.backbone, detector.statistics[width])
        yield


def match_statistics(detector: Detector, widths: Sequence[float], images: Sequence[Path]) -> None:
    """Gives norms, at widths that the detector was not trained for, the full network's moments.

    Args:
        images: on which they are measured; no labels are needed, and nothing is trained.
    """
    moments = measure_moments(detector.backbone, detector.batches(images))
    for width in widths:
        if width < detector.trained_width:
            with at_detector_width(detector, width):
                recalibrate(detector.backbone, detector.batches(images), moments)
                detector.statistics[width] = statistics_of(detector.backbone)


def count_parameters(detector: Detector, width: float) -> int:
    """Returns how many parameters the detector uses when it has that width."""
    total = sum(parameter.numel() for parameter in detector.model.parameters())
    if width == 1:
        return total
    plan = slim_plan(detector.slimmed)
    unused = 0
    for name, parameter in detector.slimmed.named_parameters():
        shape = plan.tensor_shape(name, parameter.shape, width, detector.divisor)
        unused += parameter.numel() - math.prod(shape)
    return total - unused


def measure_costs(
    detectors: Sequence[Detector],
    widths: Sequence[float],
    samples: Sequence[Sequence[Any]],
    *,
    repeats: int = 3,
) -> list[list[Cost]]:
    """Measures each detector at each width, on the same images.

    Durations are medians over images and repetitions. Postprocessing counts, reading and resizing
    do not.

    Args:
        samples: for each detector its samples, in the same order of images.
        repeats: how often each image is timed; 0 leaves duration out.
    """
    networks = list(product(range(len(detectors)), widths))
    seconds: dict[tuple[int, float], list[float]] = {network: [] for network in networks}
    for repeat in range(repeats + 1):  # the first warms up
        for position in range(len(samples[0])):
            # Networks take turns at every image: a machine's slow moments hit all alike.
            for index, width in networks:
                with at_detector_width(detectors[index], width):
                    duration = _time(detectors[index], samples[index][position])
                if repeat:
                    seconds[index, width].append(duration)
    costs = []
    for index, width in networks:
        detector = detectors[index]
        device = next(detector.model.parameters()).device
        runs = [partial(detector.detect, sample) for sample in samples[index]]
        # After the clock: both of these hooks slow the detector down.
        with at_detector_width(detector, width):
            gflops = fmean(map(count_gflops, runs))
            peaks = [peak_growth(run, device) for run in runs]
        costs.append(
            Cost(
                parameters=count_parameters(detector, width),
                gflops=gflops,
                milliseconds=1000 * median(seconds[index, width]) if repeats else None,
                peak_megabytes=None if None in peaks else max(peaks) / 1e6,
            )
        )
    return [costs[i : i + len(widths)] for i in range(0, len(costs), len(widths))]


def _time(detector: Detector, sample: Any) -> float:
    device = next(detector.model.parameters()).device
    # A GPU's kernels run on after the call that started them.
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    detector.detect(sample)
    wait()
    return time.perf_counter() - start


def count_gflops(run: Callable[[], object]) -> float:
    """Multiply-adds of convolutions and matrix products in 10^9.

    Counted while the detector runs, so that loops over proposals and paths that depend on the data
    are counted as they are taken.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2 / 1e9  # PyTorch counts a multiply-add as two


def peak_growth(run: Callable[[], object], device: torch.device) -> int | None:
    """Returns the most tensor memory beyond what was there before, in bytes; None where nobody can
    tell.

    On a CPU from the allocator's own records, which unlike the process's size are the same every
    time. What libraries allocate for themselves (oneDNN's scratch memory) is not in them, nor is
    what ``run`` frees of the memory that was there before.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        return None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    # Allocations and releases in the order of time; their running sum is what was held.
    size = peak = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=_start):
        size += event.nbytes()
        peak = max(peak, size)
    return peak


def _start(event: Any) -> int:
    return event.start_ns() if hasattr(event, "start_ns") else event.start_us()  # before torch 2.4
