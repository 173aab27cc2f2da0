"""Parameters, multiply-adds, duration and memory of a detector's inference at a width."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from gradaug_det.benchmark.detector import Detector
from gradaug_det.benchmark.memory import peak_growth
from gradaug_det.benchmark.records import Cost
from gradaug_det.core.slimming import at_width, slim_plan


def at_detector_width(detector: Detector, width: float) -> AbstractContextManager:
    """Within the block, the detector's backbone has that width, with its own statistics sliced."""
    if width == 1:
        return nullcontext()
    return at_width(detector.backbone, width, norm="frozen", divisor=detector.divisor)


def count_parameters(detector: Detector, width: float) -> int:
    """Parameters that the detector uses when its backbone has that width."""
    total = sum(parameter.numel() for parameter in detector.model.parameters())
    if width == 1:
        return total
    plan = slim_plan(detector.backbone)
    unused = 0
    for name, parameter in detector.backbone.named_parameters():
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
    """Costs of each detector at each width, on the same images.

    Durations are medians over images and repetitions; detectors and widths take turns at every
    image, so that a machine's slow moments hit all alike. Postprocessing counts, reading and
    resizing do not.

    Args:
        samples: for each detector its samples, in the same order of images.
        repeats: how often each image is timed; 0 leaves duration out.
    """
    seconds: dict[tuple[int, float], list[float]] = {}
    for repeat in range(repeats + 1):  # the first warms up
        for position in range(len(samples[0])):
            for index, detector in enumerate(detectors):
                for width in widths:
                    with at_detector_width(detector, width):
                        duration = _timed(detector, samples[index][position])
                    if repeat:
                        seconds.setdefault((index, width), []).append(duration)
    return [
        [
            Cost(
                parameters=count_parameters(detector, width),
                gflops=_gflops(detector, width, samples[index]),
                milliseconds=1000 * median(seconds[index, width]) if repeats else None,
                peak_megabytes=_peak_megabytes(detector, width, samples[index]),
            )
            for width in widths
        ]
        for index, detector in enumerate(detectors)
    ]


def _timed(detector: Detector, sample: Any) -> float:
    on_gpu = next(detector.model.parameters()).device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    detector.detect(sample)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _gflops(detector: Detector, width: float, samples: Sequence[Any]) -> float:
    """Multiply-adds of convolutions and matrix products in 10^9, mean over the samples.

    Counted while the detector runs, so that loops over proposals and paths that depend on the data
    are counted as they are taken; PyTorch counts a multiply-add as two operations.
    """
    totals = []
    for sample in samples:
        counter = FlopCounterMode(display=False)
        with at_detector_width(detector, width), counter:
            detector.detect(sample)
        totals.append(counter.get_total_flops() / 2 / 1e9)
    return fmean(totals)


def _peak_megabytes(detector: Detector, width: float, samples: Sequence[Any]) -> float | None:
    """Most tensor memory beyond what was there before, over the samples, in 10^6 bytes."""
    device = next(detector.model.parameters()).device
    with at_detector_width(detector, width):
        peaks = [peak_growth(partial(detector.detect, sample), device) for sample in samples]
    return None if None in peaks else max(peaks) / 1e6
