"""Time and memory of Detectron2's steps, run for the first time and once more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.gpu.backends import backends
from benchmarks.training.detectron2 import Detectron2Training
from benchmarks.training.workload import ALTERNATING, Variant, Workload
from gradaug_det.core.sampling import sample_own_pass

WIDTHS = {
    "": {},
    "continuous": {},
    "fixed": {"widths": [0.975, 0.95, 0.925, 0.9]},
    "divisor 16": {"divisor": 16},
}
PRECISIONS = {"TF32": None, "bfloat16": torch.bfloat16}
PLAIN, ADDED = Variant(), Variant("labels", 3)


@dataclass(frozen=True)
class Setting:
    """A training to measure.

    Args:
        batch: images a step.
        precision: a key of ``PRECISIONS``.
        benchmark: ``torch.backends.cudnn.benchmark``.
        variant: the way to train.
        widths: of added passes, a key of ``WIDTHS``.
    """

    batch: int
    precision: str
    benchmark: bool
    variant: Variant
    widths: str

    @property
    def name(self) -> str:
        training = f"{self.variant.name} {self.widths}".strip()
        search = ", cudnn.benchmark" if self.benchmark else ""
        return f"{training}, batch {self.batch}, {self.precision}{search}"


def settings(small: int, large: int) -> Iterator[Setting]:
    """Yields those that decide most first, each plain step before what is compared with it.

    Args:
        small, large: batches.
    """
    added = [(PLAIN, ""), (ADDED, "continuous"), (ADDED, "fixed"), (ADDED, "divisor 16")]
    all_kinds = [*added, (ALTERNATING, "")]
    fewer = [(Variant("labels", n), "continuous") for n in (1, 2)]
    for batch, precision, benchmark, kinds in (
        (small, "TF32", False, all_kinds),
        (small, "bfloat16", False, all_kinds),
        (large, "TF32", False, all_kinds),
        (small, "TF32", True, added),
        (small, "TF32", False, fewer),
        (large, "bfloat16", False, all_kinds),
        (small, "bfloat16", True, added),
        (small, "bfloat16", False, fewer),
        (large, "TF32", False, fewer),
        (large, "bfloat16", False, fewer),
        (large, "TF32", True, added),
        (large, "bfloat16", True, added),
    ):
        for variant, widths in kinds:
            yield Setting(batch, precision, benchmark, variant, widths)


def shares_of(variant: Variant, rounds: int) -> dict[int, float]:
    """Iteration -> its share of the mean step: rounds alike, or one of each alternating width."""
    if variant != ALTERNATING:
        return dict.fromkeys(range(1, rounds + 1), 1 / rounds)
    options = ALTERNATING.detector_options({})
    first: dict[float, int] = {}
    iteration = 0
    while len(first) < len(options.shares):
        iteration += 1
        first.setdefault(sample_own_pass(options, iteration).width, iteration)
    return {first[width]: share for width, share in options.shares.items()}


def measure_steps(
    setting: Setting, workload: Workload, rounds: int, deadline: float
) -> dict[str, Any]:
    """Measures a training.

    Args:
        workload: with the setting's batch and widths.
        rounds: steps, each with other sub-networks.
        deadline: of ``time.monotonic``: no step but the first is begun after it.

    Returns:
        The setting; ``times``, seconds of the steps, each run twice; ``first`` and ``again``, of
        the mean step in either run; ``peak_bytes`` (None on a CPU); ``planned``, how many steps
        there should be.
    """
    # PyTorch keeps what cuDNN has planned for a shape, with cudnn.benchmark or without, by thread:
    # in a new one, shapes of the trainings before are new again.
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_measure, setting, workload, rounds, deadline).result()


def _measure(setting: Setting, workload: Workload, rounds: int, deadline: float) -> dict[str, Any]:
    on_cuda = torch.device(workload.device).type == "cuda"
    precision, shares = PRECISIONS[setting.precision], shares_of(setting.variant, rounds)
    training = Detectron2Training(workload, setting.variant, precision=precision)

    def seconds(iteration: int) -> float:
        # The same proposals are drawn, so that no layer has another shape the second time.
        torch.manual_seed(iteration)
        start = time.perf_counter()
        training.step(iteration)
        if on_cuda:
            torch.cuda.synchronize(workload.device)
        return time.perf_counter() - start

    times: dict[int, tuple[float, float]] = {}
    # Backward too is run in this thread.
    with backends(True, setting.benchmark), torch.autograd.set_multithreading_enabled(False):
        seconds(0)  # libraries are loaded and memory is taken
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(workload.device)
        for iteration in shares:
            if times and time.monotonic() > deadline:
                break
            times[iteration] = seconds(iteration), seconds(iteration)
    run = sum(shares[iteration] for iteration in times)
    first, again = (
        sum(shares[iteration] * pair[place] for iteration, pair in times.items()) / run
        for place in (0, 1)
    )
    peak = torch.cuda.max_memory_allocated(workload.device) if on_cuda else None
    return {
        **vars(setting),
        "variant": setting.variant.name,
        **{"first": first, "again": again, "peak_bytes": peak},
        **{"times": list(times.values()), "planned": len(shares)},
    }
