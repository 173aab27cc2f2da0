"""Time, FLOPs and memory of the variants of a task, on the same sub-networks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training.trainings import training_class
from benchmarks.training.workload import Training, Variant, Workload
from gradaug_det.benchmark.cost import peak_growth
from gradaug_det.errors import GradAugError

logger = logging.getLogger(__name__)
WARMUP = 1
"""Steps of each variant before the first that counts."""


def per_pass(
    step: Callable[[], object], read: Callable[[], tuple[float, ...]], passes: int
) -> list[tuple[float, ...]]:
    """Returns how far the meters moved in each pass of a step, until its backward ended, and after.

    Args:
        step: to be taken.
        read: the meters.
        passes: number of passes, each with one call of ``Tensor.backward``.

    Returns:
        ``passes`` + 1 differences, the last one of what follows the last backward.

    Raises:
        GradAugError: there were more or fewer passes.
    """
    readings = [read()]
    # A pass ends with its one backward, in all three engines and in the authors' loop: a meter that
    # is read there parts the passes and needs no word from the training.
    original = Tensor.backward

    def backward(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        readings.append(read())

    Tensor.backward = backward
    try:
        step()
    finally:
        Tensor.backward = original
    if len(readings) != passes + 1:
        raise GradAugError(f"a step of {passes} passes called backward {len(readings) - 1} times")
    readings.append(read())
    return [
        tuple(b - a for a, b in zip(before, after, strict=True))
        for before, after in pairwise(readings)
    ]


class _Measured:
    """A variant's training, and what was measured of it."""

    def __init__(self, workload: Workload, variant: Variant) -> None:
        self.variant = variant
        self.training: Training = training_class(workload.task)(workload, variant)
        self.device = torch.device(workload.device)
        self.rounds: list[dict[str, Any]] = []

    def step(self, iteration: int) -> None:
        # Proposals are drawn alike whenever the iteration is run.
        torch.manual_seed(iteration)
        self.training.step(iteration)

    def time(self, iteration: int) -> None:
        def read() -> tuple[float, float]:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            return time.perf_counter(), time.process_time()

        parts = self._per_pass(iteration, read)
        subs = self.training.sub_networks(iteration)
        self.rounds.append(
            {
                "iteration": iteration,
                "sub_networks": [{"width": s.width, "scale": s.transform.scale} for s in subs],
                "wall": [wall for wall, _ in parts],
                "cpu": [cpu for _, cpu in parts],
            }
        )

    def count_flops(self) -> None:
        """Once for rounds of the same sub-networks: the network and the batch are the same."""
        known: dict[tuple, list[int]] = {}
        for entry in self.rounds:
            # Which blocks are skipped is the seed's business.
            key = tuple(
                (s.width, s.transform.scale, s.seed if s.block_survival < 1 else None)
                for s in self.training.sub_networks(entry["iteration"])
            )
            if key not in known:
                known[key] = self.flops(entry["iteration"])
            entry["flops"] = known[key]

    def flops(self, iteration: int) -> list[int]:
        """Counts the FLOPs of the passes of a step, and of the rest."""
        with FlopCounterMode(display=False) as counter:
            parts = self._per_pass(iteration, lambda: (counter.get_total_flops(),))
        return [int(flops) for (flops,) in parts]

    def _per_pass(
        self, iteration: int, read: Callable[[], tuple[float, ...]]
    ) -> list[tuple[float, ...]]:
        return per_pass(lambda: self.step(iteration), read, self.variant.num_subnets + 1)

    def peak_bytes(self) -> int | None:
        """Most memory of tensors, of the network and the optimizer too, in the rounds that have the
        most and the fewest FLOPs.

        Steps but the first one start, as in a training, with gradients that another one left.
        """
        ordered = sorted(self.rounds, key=lambda entry: sum(entry["flops"]))
        fewest, most = (ordered[place]["iteration"] for place in (0, -1))
        self.training.optimizer.zero_grad()
        growth = peak_growth(lambda: [self.step(i) for i in (most, fewest, most)], self.device)
        return None if growth is None else growth + _held_bytes(self.training)


def _held_bytes(training: Training) -> int:
    """Bytes of the network's tensors and the optimizer's state, gradients not counted."""
    model = training.model
    states = chain.from_iterable(s.values() for s in training.optimizer.state.values())
    # By identity, since tensors may be shared, as those of slimmable layers are.
    tensors: Iterable[Any] = chain(model.parameters(), model.buffers(), states)
    return sum({id(t): t.nbytes for t in tensors if isinstance(t, Tensor)}.values())


def measure(workload: Workload, variants: list[Variant], rounds: int) -> dict[str, Any]:
    """Measures the variants, each once a round, so that a machine's slow moments hit all alike.

    Rounds are the iterations of a training, with new sub-networks each, as a training has them.

    Returns:
        Variant -> ``rounds``, a list of ``iteration``, ``sub_networks`` (``width``, ``scale``),
        ``wall`` and ``cpu`` (seconds of the full pass, of each sub-network's, of the rest) and
        ``flops`` (likewise); and ``peak_bytes`` (None where nobody can tell).
    """
    measured = [_Measured(workload, variant) for variant in variants]
    for iteration in range(WARMUP):
        for each in measured:
            each.step(iteration)
    for iteration in range(WARMUP, WARMUP + rounds):
        logger.info("%s: round %d of %d", workload.task, iteration + 1 - WARMUP, rounds)
        # Who goes first finds other caches and clock rates: each variant does so equally often.
        turn = iteration % len(measured)
        for each in measured[turn:] + measured[:turn]:
            each.time(iteration)
    results = {}
    for each in measured:
        logger.info("%s: FLOPs and memory of %s", workload.task, each.variant.name)
        each.count_flops()
        results[each.variant.name] = {"rounds": each.rounds, "peak_bytes": each.peak_bytes()}
    return results


def mean_flops(workload: Workload, variant: Variant, iterations: int) -> float:
    """FLOPs of a step, mean over the sub-networks of the first iterations."""
    each = _Measured(workload, variant)
    return sum(sum(each.flops(i)) for i in range(iterations)) / iterations


def profile_step(workload: Workload, variant: Variant, rows: int = 30) -> str:
    """torch.profiler's table of one step's operators, by their own time."""
    measured = _Measured(workload, variant)
    for iteration in range(WARMUP + 1):
        measured.step(iteration)
    on_gpu = measured.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities) as profiler:
        measured.step(WARMUP + 1)
    return profiler.key_averages().table(
        sort_by=f"self_{'cuda' if on_gpu else 'cpu'}_time_total",
        row_limit=rows,
        max_name_column_width=50,
    )


def describe_workload(workload: Workload) -> dict[str, Any]:
    """Returns what was trained, without the folder of this machine."""
    fields = {k: v for k, v in vars(workload).items() if k not in ("configs", "task")}
    return {**fields, "threads": torch.get_num_threads(), "configs": Path(workload.configs).name}
