"""What an export asks of a detector, whichever framework it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from gradaug_det.export.programs import Traceable


class Exporter(Protocol):
    """A detector of one framework that can be written as an ordinary one, made of DetectorFiles.

    Raises (when it is made):
        ConfigError: the config cannot be used, or is of a kind that cannot be exported.
        ZooError: the weights cannot be used, or do not fit the config.

    Attributes:
        framework: for readers.
        model: the detector, in evaluation mode, on the CPU.
        backbone: the part of it that is slimmed.
        weights_name: of the checkpoint to write.
    """

    framework: str
    model: nn.Module
    backbone: nn.Module
    weights_name: str

    def detect_blank(self) -> None:
        """Runs the whole detector on a blank image."""

    def config(self, share: Fraction, weights: str) -> tuple[str, str]:
        """Name and content of the config of the narrow detector, which needs no gradaug_det.

        Args:
            share: of the channels that it keeps.
            weights: where its weights will be.

        Raises:
            ConfigError: the framework's config has no way to say it.
        """

    def build(self, config: Path) -> nn.Module:
        """The detector of such a config file, in evaluation mode, without weights."""

    def part(self, model: nn.Module) -> nn.Module:
        """What ``backbone`` is, in another detector."""

    def features(self, model: nn.Module, images: Tensor) -> list[Tensor]:
        """What the heads read, of prepared images (N, 3, H, W)."""

    def checkpoint(self, state: dict[str, Tensor], config: str) -> dict[str, Any]:
        """What the framework's checkpoint file holds besides; ``config`` is the content."""

    def batches(self, model: nn.Module, images: Sequence[Path]) -> Iterator[Tensor]:
        """The images (N, 3, H, W) as ``backbone`` sees them, by the config's test pipeline."""

    def traceable(self, model: nn.Module) -> Traceable:
        """What a program can be made of, as far as the framework can be traced.

        Raises:
            RuntimeError, ValueError, TypeError, AttributeError: the framework's own adapter fails.
        """
