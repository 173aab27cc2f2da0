"""Methods (runs averaged over their seeds) and how they differ from the baseline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from gradaug_det.evaluation.coco import CATEGORY_PREFIX
from studies.report.records import RunRecord

TABLE_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass
class Method:
    """The runs of one method; all numbers are means over those of its seeds that have them."""

    name: str
    runs: list[RunRecord]

    @property
    def label(self) -> str:
        return self.runs[0].label

    @property
    def seconds_per_iteration(self) -> float | None:
        """Mean duration of a training step in seconds."""
        return _mean(run.seconds_per_iteration for run in self.runs)

    def values(self, task: str, metric: str) -> list[float]:
        """The metric of each seed, without those where it does not exist (NaN, in JSON None)."""
        found = (run.metrics.get(task, {}).get(metric) for run in self.runs)
        return [value for value in found if value is not None and math.isfinite(value)]

    def mean(self, task: str, metric: str) -> float | None:
        """Mean over the seeds in per cent; None where no seed has the metric."""
        return _mean(self.values(task, metric))

    def spread(self, task: str, metric: str) -> float | None:
        """Standard deviation over the seeds; None with fewer than two."""
        values = self.values(task, metric)
        return stdev(values) if len(values) > 1 else None

    def categories(self, task: str) -> list[str]:
        """Names of the categories that have an AP of their own, in order."""
        names = (key for run in self.runs for key in run.metrics.get(task, {}))
        return list(
            dict.fromkeys(
                n.removeprefix(CATEGORY_PREFIX) for n in names if n.startswith(CATEGORY_PREFIX)
            )
        )


def group_methods(runs: Sequence[RunRecord], baseline_method: str) -> list[Method]:
    """Group runs by their method, the baseline first, the others in the order of their runs."""
    grouped: dict[str, list[RunRecord]] = {baseline_method: []}
    for run in runs:
        grouped.setdefault(run.method, []).append(run)
    return [Method(name, members) for name, members in grouped.items()]


def difference(method: Method, baseline: Method, task: str, metric: str) -> float | None:
    """Mean of the method minus mean of the baseline in points of AP; None if one is missing."""
    ours, theirs = method.mean(task, metric), baseline.mean(task, metric)
    return None if ours is None or theirs is None else ours - theirs


def step_time_ratio(method: Method, baseline: Method) -> float | None:
    """Duration of the method's training step over the baseline's; None if one is not known."""
    ours, theirs = method.seconds_per_iteration, baseline.seconds_per_iteration
    return ours / theirs if ours is not None and theirs else None


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if present else None
