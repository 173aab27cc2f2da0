"""The plain-language summary of a benchmark. Every sentence follows from numbers in it."""

from __future__ import annotations

from gradaug_det.benchmark.measured import (
    ap_by_epsilon,
    clean_ap,
    finite,
    tasks_of,
    widest,
)
from gradaug_det.benchmark.records import Benchmark, DetectorResult, WidthResult
from gradaug_det.evaluation.coco import TASK_NAMES
from gradaug_det.reports.rendering import signed


def summarise(benchmark: Benchmark) -> list[str]:
    """A paragraph for each detector."""
    first = benchmark.detectors[0]
    return [
        " ".join(
            [
                _headline(detector, None if detector is first else first),
                *_narrow(detector),
                *_corrupted(detector),
                *_attacked(detector),
            ]
        )
        for detector in benchmark.detectors
    ]


def _headline(detector: DetectorResult, first: DetectorResult | None) -> str:
    parts = []
    compared = False
    for task, ap in _clean_aps(detector, widest(detector)).items():
        text = _quoted(task, ap)
        other = _clean_aps(first, widest(first)).get(task) if first is not None else None
        if other is not None:
            delta = signed(ap - other, 1)
            # The first detector is named once.
            text += f" ({delta})" if compared else f" ({delta} against {first.label})"
            compared = True
        parts.append(text)
    if not parts:
        return f"{detector.label} has no AP: there is no object to find."
    width = widest(detector).width
    at = "" if width == 1 else f" at width {width:g}"
    return f"{detector.label} reaches {' and '.join(parts)}{at}."


def _narrow(detector: DetectorResult) -> list[str]:
    full, narrow = widest(detector), min(detector.widths, key=lambda r: r.width)
    aps = _clean_aps(detector, narrow)
    if narrow is full or not aps:
        return []
    share = ""
    if full.cost.gflops and narrow.cost.gflops is not None:
        share = f" with {100 * narrow.cost.gflops / full.cost.gflops:.0f} % of the multiply-adds"
    quoted = " and ".join(_quoted(task, ap) for task, ap in aps.items())
    return [f"At width {narrow.width:g} it has {quoted}{share}."]


def _corrupted(detector: DetectorResult) -> list[str]:
    result, sentences = widest(detector), []
    for task in tasks_of(detector):
        mpc, rpc = finite(result.mpc(task)), finite(result.rpc(task))
        if mpc is not None:
            share = f", {rpc:.0f} % of the clean AP (rPC)" if rpc is not None else ""
            sentences.append(f"Under corruption, {TASK_NAMES[task]} AP is {mpc:.1f} (mPC){share}.")
    return sentences


def _attacked(detector: DetectorResult) -> list[str]:
    found = {task: ap_by_epsilon(widest(detector), task) for task in tasks_of(detector)}
    strongest = max((epsilon for aps in found.values() for epsilon in aps), default=None)
    if strongest is None:
        return []
    quoted = " and ".join(
        _quoted(task, aps[strongest]) for task, aps in found.items() if strongest in aps
    )
    return [f"Attacked with FGSM of epsilon {strongest:g}/255 it has {quoted}."]


def _clean_aps(detector: DetectorResult, result: WidthResult) -> dict[str, float]:
    """Task -> AP in per cent, of the tasks that have one."""
    found = {task: clean_ap(result, task) for task in tasks_of(detector)}
    return {task: ap for task, ap in found.items() if ap is not None}


def _quoted(task: str, ap: float) -> str:
    return f"{ap:.1f} {TASK_NAMES[task]} AP"
