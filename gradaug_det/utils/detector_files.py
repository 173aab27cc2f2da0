"""The files that a detector of either framework is built from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class DetectorFiles:
    """A detector's config and weights.

    Args:
        config: file of a Detectron2 yaml config or LazyConfig, or of an MMDetection config.
        weights: checkpoint's path or URL; None leaves the config's own.
        label: for readers.
        framework: ``detectron2`` or ``mmdet``; by default what the config's file looks like.
        overrides: of the config: ``KEY VALUE`` pairs in one flat list for yaml, else ``key=value``.
    """

    config: Path
    weights: str | None
    label: str
    framework: str | None = None
    overrides: tuple[str, ...] = ()
