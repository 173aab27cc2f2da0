"""A run of the benchmark: task by task, each written as soon as it is measured."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.training.measure import describe_workload, measure, profile_step
from benchmarks.training.report import write_profile, write_report
from benchmarks.training.workload import TASKS, Workload, check_variants, variants_of
from gradaug_det.errors import ConfigError
from gradaug_det.utils.environment import describe_environment

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A measurement of training steps.

    Args:
        configs: folder of the project's configs.
        out: folder of the report.
        command: that started it, for readers.
        tasks: keys of ``TASKS``.
        rounds: steps of each variant; 0 for profiles alone.
        only: names of the variants; all by default.
        profile: names of variants to profile.
        size: (height, width), or one number for both; None for each task's own.
        batch: images a step; None for each task's own.
        threads: of torch; None leaves its own choice.
        depth, small, device, channels_last, options: see
            :class:`benchmarks.training.workload.Workload`.

    Raises:
        ConfigError: a value is not allowed.
    """

    configs: Path
    out: Path
    command: str
    tasks: Sequence[str] = tuple(TASKS)
    rounds: int = 10
    only: Sequence[str] = ()
    profile: Sequence[str] = ()
    size: Sequence[int] | None = None
    batch: int | None = None
    threads: int | None = None
    depth: int = 50
    small: bool = False
    device: str = "cpu"
    channels_last: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_variants("--only", self.only, self.tasks)
        check_variants("--profile", self.profile, self.tasks)
        if self.rounds < 0 or not (self.rounds or self.profile):
            raise ConfigError("--rounds", f"must be above 0 without --profile, got {self.rounds}")
        if self.size is not None and len(self.size) > 2:
            raise ConfigError("--size", f"must be one or two numbers, got {self.size}")

    def workload(self, task: str) -> Workload:
        """Returns a task's network and batch."""
        own = TASKS[task]
        return Workload(
            task=task,
            configs=self.configs,
            size=(self.size[0], self.size[-1]) if self.size else own.size,
            batch_size=own.batch_size if self.batch is None else self.batch,
            depth=self.depth,
            small=self.small,
            device=self.device,
            channels_last=self.channels_last,
            options=self.options,
        )


def run(settings: Run) -> None:
    """Measures what the settings say and writes the report."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    for task in settings.tasks:
        workload = settings.workload(task)
        for variant in variants_of(task):
            if variant.name in settings.profile:
                table = profile_step(workload, variant)
                file = write_profile(settings.out, task, variant.name, table, settings.command)
                logger.info("profile: %s", file)
        if settings.rounds:
            content = {
                "workload": describe_workload(workload),
                "command": settings.command,
                "environment": describe_environment(),
                "measured": measure(workload, variants_of(task, settings.only), settings.rounds),
            }
            logger.info("report: %s", write_report(settings.out, task, content))


def parse_options(texts: Sequence[str]) -> dict[str, Any]:
    """GradAug settings from ``key=value``, values as in yaml.

    Raises:
        ConfigError: a text is not ``key=value``.
    """
    import yaml

    options = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError("--options", f"must be key=value, got {text!r}")
        options[key] = yaml.safe_load(value)
    return options
