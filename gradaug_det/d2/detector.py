"""A Detectron2 detector as Algorithm 1 sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.utils.events import EventStorage, get_event_storage
from torch import nn

from gradaug_det.core.detector import SlimmableDetector
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.recording import ForwardRecorder
from gradaug_det.core.regularizer import Losses
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.d2.backbone import detector_backbone
from gradaug_det.d2.batch import Batch, transform_batch
from gradaug_det.d2.targets import Calls, soft_targets


class GradAugDetector(SlimmableDetector):
    """A Detectron2 model in training.

    Args:
        detector: a Detectron2 model with a slimmable ``backbone``, not wrapped for distribution.
        options: the settings.

    Raises:
        UnslimmableError: the backbone cannot be slimmed.
        ConfigError: the supervision or the norm policy does not fit the detector.
    """

    def __init__(self, detector: nn.Module, options: GradAugOptions) -> None:
        super().__init__(detector, detector_backbone(detector), options, soft_targets)
        self.recorder = ForwardRecorder(self.targets.record() if self.targets else {})

    def full_pass(self, batch: Batch) -> tuple[Losses, Calls]:
        """The detector's own losses, and what its heads gave on the way."""
        self.recorder.start()
        return self.module(batch), self.recorder.take()

    def sub_network_pass(self, batch: Batch, soft_target: Calls, sub: SubNetwork) -> Losses:
        """Losses of the sub-network, by name: ``soft_*`` and ``labels_*``, weighted."""
        labels, soft = {}, {}
        sub_batch = transform_batch(batch, sub.transform, self.options)
        if self.options.uses_labels:
            with _features_of(self.module) as kept, no_traces(self.module):
                labels = self.module(sub_batch)
        if self.targets:
            # `both` runs the backbone once.
            features = kept[0] if labels else self._features(sub_batch)
            sizes = [tuple(item["image"].shape[-2:]) for item in batch]
            soft = self.targets.losses(features, soft_target, sub.transform, sizes)
        return self.weighted(labels, soft, sub)

    def _features(self, batch: Batch) -> dict[str, Any]:
        return self.module.backbone(self.module.preprocess_image(batch).tensor)


@contextmanager
def _features_of(detector: nn.Module) -> Iterator[list[Any]]:
    """Within the block, notes what the backbone returns."""
    kept: list[Any] = []
    handle = detector.backbone.register_forward_hook(lambda _m, _i, out: kept.append(out))
    try:
        yield kept
    finally:
        handle.remove()


@contextmanager
def no_traces(detector: nn.Module) -> Iterator[None]:
    """Within the block, a training forward leaves no logged scalars and no moving averages.

    Detectors write accuracies into the current EventStorage, and RetinaNet keeps the number of
    positives as a plain attribute; both are the full network's alone.
    """
    numbers = {k: v for k, v in vars(detector).items() if type(v) in (int, float)}
    try:
        with EventStorage(get_event_storage().iter):
            yield
    finally:
        vars(detector).update(numbers)
