"""What the detectors of both frameworks have in common as Algorithm 1's network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.recording import ForwardRecorder
from gradaug_det.core.regularizer import Losses
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.core.slimming import slim_plan
from gradaug_det.core.transforms import BatchTransform, Size


class SlimmableDetector(ABC):
    """A detector in training, up to its passes (see
    :class:`gradaug_det.core.regularizer.Trainable`).

    Args:
        detector: the framework's model, not wrapped for distribution.
        backbone: the part of it that is slimmed.
        options: the settings.
        soft_targets: what soft targets are made of and compared by, for a detector; asked for only
            if the options need it.

    Attributes:
        autocast: the precision in which sub-networks' forward passes run; backward passes run
            outside, as those of the full network do.

    Raises:
        UnslimmableError: the backbone cannot be slimmed.
        ConfigError: the supervision or the norm policy does not fit the detector.
    """

    def __init__(
        self,
        detector: nn.Module,
        backbone: nn.Module,
        options: GradAugOptions,
        soft_targets: Callable[[nn.Module], Any],
    ) -> None:
        self.module, self.backbone, self.options = detector, backbone, options
        self.subnet_norm = options.subnet_norm
        self.autocast: AbstractContextManager = nullcontext()
        slim_plan(backbone).check_norm(options.subnet_norm)
        if options.channels_last:
            detector.to(memory_format=torch.channels_last)
        self.targets = soft_targets(detector) if options.uses_soft else None

    # ---- the framework's part -----------------------------------------------------------------

    @abstractmethod
    def batch_of(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        """The batch of a call of the detector, if it is a training pass; else None."""

    @abstractmethod
    def losses(self, batch: Any) -> Losses:
        """The detector's own losses."""

    @abstractmethod
    def features(self, batch: Any) -> Any:
        """What its heads get."""

    @property
    @abstractmethod
    def last(self) -> nn.Module:
        """The layer whose output that is."""

    @abstractmethod
    def transformed(self, batch: Any, transform: BatchTransform) -> Any:
        """The batch that a sub-network sees."""

    @abstractmethod
    def sizes(self, batch: Any) -> list[Size]:
        """(height, width) of its images."""

    # ---- passes -------------------------------------------------------------------------------

    @contextmanager
    def recording(self) -> Iterator[ForwardRecorder]:
        """Within the block, a recorder notes what soft targets are made of."""
        recorder = ForwardRecorder(self.targets.record() if self.targets else {})
        try:
            yield recorder
        finally:
            recorder.stop()

    def full_pass(self, batch: Any) -> tuple[Losses, dict[str, list[Any]]]:
        """The detector's own losses, and what its heads gave on the way."""
        with self.recording() as recorder:
            return self.losses(batch), recorder.stop()

    def sub_network_pass(
        self, batch: Any, soft_target: dict[str, list[Any]], sub: SubNetwork
    ) -> Losses:
        """Losses of the sub-network, by name: ``soft_*`` and ``labels_*``, weighted."""
        labels: Losses = {}
        soft: Losses = {}
        kept: list[Any] = []
        with self.autocast:
            sub_batch = self.transformed(batch, sub.transform)
            if self.options.uses_labels:
                handle = self.last.register_forward_hook(lambda _m, _i, out: kept.append(out))
                try:
                    labels = self._labels_pass(sub_batch)
                finally:
                    handle.remove()
            if self.targets:
                # `both` runs the backbone once.
                features = kept[0] if kept else self.features(sub_batch)
                soft = self.targets.losses(features, soft_target, sub.transform, self.sizes(batch))
            return self._weighted(labels, soft, sub)

    def _labels_pass(self, batch: Any) -> Losses:
        return self.losses(batch)

    def _weighted(self, labels: Losses, soft: Losses, sub: SubNetwork) -> Losses:
        options, soft_weight = self.options, self.options.soft_weight_at(sub.iteration)
        return {
            **{
                f"labels_{k.replace('loss_', '')}": options.labels_weight * v
                for k, v in labels.items()
            },
            **{f"soft_{k}": soft_weight * v for k, v in soft.items()},
        }
