"""The plain-language summary of a benchmark. Every sentence follows from numbers in it."""

from __future__ import annotations

from gradaug_det.benchmark.plots import tasks_of, widest
from gradaug_det.benchmark.records import Benchmark, DetectorResult
from gradaug_det.evaluation.comparison import TASK_NAMES
from gradaug_det.evaluation.wording import signed


def summarise(benchmark: Benchmark) -> list[str]:
    """A paragraph for each detector."""
    first = benchmark.detectors[0]
    return [
        " ".join(
            [
                _headline(detector, None if detector is first else first),
                *_narrow(detector),
                *_robust(detector),
            ]
        )
        for detector in benchmark.detectors
    ]


def _headline(detector: DetectorResult, other: DetectorResult | None) -> str:
    parts = []
    for task in tasks_of(detector):
        ap = widest(detector).metrics[task]["AP"]
        difference = ""
        if other is not None and task in tasks_of(other):
            delta = signed(ap - widest(other).metrics[task]["AP"], 1)
            difference = f" ({delta} to {other.label})"
        parts.append(f"{ap:.1f} {TASK_NAMES[task]} AP{difference}")
    width = widest(detector).width
    at = "" if width == 1 else f" at width {width:g}"
    return f"{detector.label} reaches {' and '.join(parts)}{at}."


def _narrow(detector: DetectorResult) -> list[str]:
    full, narrow = widest(detector), min(detector.widths, key=lambda r: r.width)
    if narrow is full:
        return []
    aps = " and ".join(
        f"{narrow.metrics[task]['AP']:.1f} {TASK_NAMES[task]} AP" for task in tasks_of(detector)
    )
    share = ""
    if full.cost.gflops and narrow.cost.gflops:
        share = f" with {100 * narrow.cost.gflops / full.cost.gflops:.0f} % of the multiply-adds"
    return [f"At width {narrow.width:g} it has {aps}{share}."]


def _robust(detector: DetectorResult) -> list[str]:
    result, sentences = widest(detector), []
    for task in tasks_of(detector):
        mpc, rpc = result.mpc(task), result.rpc(task)
        if mpc is not None:
            share = f", {rpc:.0f} % of the clean AP" if rpc is not None else ""
            sentences.append(f"Under corruption, {TASK_NAMES[task]} AP is {mpc:.1f}{share}.")
    if result.fgsm:
        epsilon = max(result.fgsm)
        aps = " and ".join(
            f"{result.fgsm[epsilon][task]:.1f} {TASK_NAMES[task]} AP"
            for task in tasks_of(detector)
            if task in result.fgsm[epsilon]
        )
        sentences.append(f"Attacked with FGSM of epsilon {epsilon:g}/255 it has {aps}.")
    return sentences
