"""The trained runs that a report is made from, and where their data lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from gradaug_det.errors import ConfigError
from studies.report.statistics import Agreement

Metrics = dict[str, dict[str, float]]


@dataclass
class RunRecord:
    """One training run and what it measured.

    Args:
        name: identifies the run, e.g. ``"gradaug-seed1"``.
        label: what readers see, e.g. ``"GradAug"``. Runs of one method share it.
        config: name of the configuration (no machine-local path: reports are published).
        iterations: optimizer steps of the training.
        metrics: ``{"bbox": {"AP": ..., "AP-shirt": ...}, "segm": {...}}`` in per cent, as
            :func:`gradaug_det.evaluation.coco.evaluate_coco` and Detectron2 return it.
        curves: ``{scalar: [(iteration, value), ...]}``, from
            :func:`studies.report.curves.read_detectron2_metrics`.
        seconds: duration of the training.
        predictions: COCO results on the validation set, for the pictures.
        num_parameters: of the full network.
        notes: anything a reader should know about this run.
        method: runs with the same method are seeds of it and are averaged; by default the name.
        seed: of the run.
    """

    name: str
    label: str
    config: str
    iterations: int
    metrics: Metrics
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    seconds: float | None = None
    predictions: Path | None = None
    num_parameters: int | None = None
    notes: str = ""
    method: str = ""
    seed: int | None = None

    def __post_init__(self) -> None:
        self.method = self.method or self.name

    @property
    def seconds_per_iteration(self) -> float | None:
        """Duration of a training step: the median logged one, else the total over the steps."""
        logged = [value for _, value in self.curves.get("time", [])]
        if logged:
            return median(logged)
        if self.seconds is None or not self.iterations:
            return None
        return self.seconds / self.iterations


@dataclass
class Report:
    """A comparison of runs that were evaluated on the same validation set.

    Args:
        title: heading of the report.
        runs: the runs, in the order they are shown.
        baseline: name of the run (and so its method) that the others are compared with.
        gt_json: COCO ground truth of the validation set.
        image_root: folder of its images; None leaves the pictures out.
        environment: from :func:`gradaug_det.utils.environment.describe_environment`.
        commands: the commands that reproduce the runs.
        num_pictures: validation images to show.
        dataset: name of the validation set, for readers.
        introduction: a sentence or two on what was compared and why, for readers.
        agreements: differences over seeds, by what is subtracted from what.
        score_threshold: detections scoring less are not drawn.

    Raises:
        ConfigError: no run, a name given twice, or a baseline that is not among the runs.
    """

    title: str
    runs: Sequence[RunRecord]
    baseline: str
    gt_json: str | Path
    image_root: str | Path | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    commands: Sequence[str] = ()
    num_pictures: int = 6
    dataset: str = ""
    introduction: str = ""
    agreements: Mapping[str, Agreement] = field(default_factory=dict)
    score_threshold: float = 0.5

    def __post_init__(self) -> None:
        names = [run.name for run in self.runs]
        if not names:
            raise ConfigError("runs", "is empty; a report needs at least one RunRecord")
        if len(set(names)) < len(names):
            raise ConfigError("runs", f"has the names {names}; each run needs its own")
        if self.baseline not in names:
            raise ConfigError("baseline", f"{self.baseline!r} is not one of the runs {names}")

    @property
    def baseline_method(self) -> str:
        """The method of the baseline run."""
        return next(run.method for run in self.runs if run.name == self.baseline)
