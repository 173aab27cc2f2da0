"""A task's network and batch, and the ways to train it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from gradaug_det.core.checks import check_integer
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.sampling import SubNetwork, sample_own_pass, sample_sub_networks
from gradaug_det.errors import ConfigError

SUBNETS = (1, 2, 3)


@dataclass(frozen=True)
class Task:
    """A kind of training.

    Attributes:
        title: for readers.
        kinds: of its variants with added passes.
        size: (height, width) of its images in pixels, by default.
        batch_size: by default.
    """

    title: str
    kinds: tuple[str, ...]
    size: tuple[int, int]
    batch_size: int


_SUPERVISIONS = ("soft", "labels", "both")
TASKS = {
    "classification": Task("Classification", ("soft", "authors"), (224, 224), 8),
    "detectron2": Task("Mask R-CNN in Detectron2", _SUPERVISIONS, (256, 320), 2),
    "mmdet": Task("Mask R-CNN in MMDetection", _SUPERVISIONS, (256, 320), 2),
}


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Args:
        kind: ``plain``; ``soft``, ``labels``, ``both``: GradAug with that supervision; ``authors``:
            their loop (:mod:`benchmarks.training.authors`); ``alternating``: one pass a step, full
            or narrow.
        num_subnets: sub-networks a step whose passes are added.
    """

    kind: str = "plain"
    num_subnets: int = 0

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.num_subnets}" if self.num_subnets else self.kind

    def detector_options(self, options: Mapping[str, Any]) -> GradAugOptions:
        """These settings with the variant's own; plain steps have none.

        Raises:
            ConfigError: one of them is unknown or not allowed.
        """
        if self == ALTERNATING:
            return GradAugOptions.from_mapping({**options, "passes": self.kind})
        if not self.num_subnets:
            return GradAugOptions(num_subnets=0)
        own = {"supervision": self.kind, "num_subnets": self.num_subnets}
        return GradAugOptions.from_mapping({**options, **own})


ALTERNATING = Variant("alternating")


def variants_of(task: str, only: Sequence[str] = ()) -> list[Variant]:
    """The variants of a task, the plain step first.

    Args:
        task: a key of ``TASKS``.
        only: names of those to keep; the plain step, which the others are compared with, always is.
    """
    gradaug = [Variant(kind, n) for kind in TASKS[task].kinds for n in SUBNETS]
    return [Variant(), *(v for v in [*gradaug, ALTERNATING] if not only or v.name in only)]


def sample_passes(options: GradAugOptions, iteration: int) -> list[SubNetwork]:
    """Returns the added passes of a step; where there are none, its own."""
    return sample_sub_networks(options, iteration) or [sample_own_pass(options, iteration)]


def check_variants(key: str, names: Sequence[str], tasks: Sequence[str]) -> None:
    """Raises ConfigError, which names ``key``, if a name is a variant of none of the tasks."""
    known = dict.fromkeys(variant.name for task in tasks for variant in variants_of(task))
    for name in names:
        if name not in known:
            raise ConfigError(key, f"{name!r} is no variant of these tasks: {', '.join(known)}")


@dataclass(frozen=True)
class Workload:
    """A task's network and batch.

    Args:
        task: a key of ``TASKS``.
        configs: folder of the project's configs.
        size: (height, width) of the images in pixels.
        batch_size: images a step.
        depth: of the classification's ResNet.
        small: detectors are those of the mini configs.
        device: of torch.
        channels_last: memory format of the weights, and of the images where the framework does not
            put them together itself.
        options: GradAug settings, by the names of the task's own.

    Raises:
        ConfigError: a value is not allowed.
    """

    task: str
    configs: Path
    size: tuple[int, int]
    batch_size: int
    depth: int = 50
    small: bool = False
    device: str = "cpu"
    channels_last: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_integer("--batch", self.batch_size, low=2 if self.task == "classification" else 1)
        for length in self.size:
            check_integer("--size", length, low=32)
        for key in ("num_subnets", "supervision"):
            if key in self.options:
                raise ConfigError("--options", f"cannot set {key}: variants do; see --only")

    def to_memory_format(self, model: nn.Module) -> nn.Module:
        """Returns the model in this memory format."""
        return model.to(memory_format=torch.channels_last) if self.channels_last else model


class Training(Protocol):
    """A training that can be made to take one step at a time, made of (workload, variant).

    The learning rate is 0 or next to it, so that each step is of the same network.

    Raises (when it is made):
        ConfigError: an option is unknown or not allowed.

    Attributes:
        model: the network.
        optimizer: its optimizer.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer

    def sub_networks(self, iteration: int) -> list[SubNetwork]:
        """Returns :func:`sample_passes` of the step."""

    def step(self, iteration: int) -> None:
        """One whole step: from the batch to the optimizer's step."""
