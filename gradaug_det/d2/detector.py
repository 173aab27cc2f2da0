"""A Detectron2 detector as Algorithm 1 sees it."""

from __future__ import annotations

import threading
from typing import Any

from detectron2.structures import Instances
from detectron2.utils.events import EventStorage, get_event_storage
from torch import Tensor, nn

from gradaug_det.core.detector import SlimmableDetector
from gradaug_det.core.regularizer import Losses
from gradaug_det.core.slimming import Overrides
from gradaug_det.core.transforms import BatchTransform, Size
from gradaug_det.d2.backbone import slimmed_part
from gradaug_det.d2.batch import Batch, transform_batch
from gradaug_det.d2.soft_targets import soft_targets


class GradAugDetector(SlimmableDetector):
    """A Detectron2 model in training."""

    find_slimmed = staticmethod(slimmed_part)
    make_soft_targets = staticmethod(soft_targets)

    def batch_of(self, args: tuple, kwargs: dict[str, Any]) -> Batch | None:
        return next(iter((*args, *kwargs.values())), None) if self.module.training else None

    def on_device(self, batch: Batch) -> Batch:
        device = next(self.module.parameters()).device

        def move(value: Any) -> Any:  # polygons stay where they are
            return value.to(device) if isinstance(value, (Tensor, Instances)) else value

        return [{key: move(value) for key, value in item.items()} for item in batch]

    def losses(self, batch: Batch) -> Losses:
        return self.module(batch)

    def features(self, batch: Batch) -> dict[str, Any]:
        return self.module.backbone(self.module.preprocess_image(batch).tensor)

    @property
    def last(self) -> nn.Module:
        return self.module.backbone

    def transform(self, batch: Batch, transform: BatchTransform) -> Batch:
        return transform_batch(batch, transform, self.options)

    def sizes(self, batch: Batch) -> list[Size]:
        return [tuple(item["image"].shape[-2:]) for item in batch]

    def _labels_pass(self, batch: Batch) -> Losses:
        with Overrides() as overrides, AsideStorage():
            for layer in self.module.modules():
                if getattr(layer, "vis_period", 0):  # pictures of the full network alone
                    overrides.set(vars(layer), "vis_period", 0)
            return super()._labels_pass(batch)


class AsideStorage(EventStorage):
    """Within its block, forgets the scalars that this thread's passes log.

    Detectors write accuracies into the current EventStorage, and those of the full network are
    meant.
    """

    def __init__(self) -> None:
        # The storage is one for all threads: what a thread that writes metrics late logs goes on
        # to the one around.
        self._around, self._thread = get_event_storage(), threading.get_ident()
        super().__init__(self._around.iter)

    def put_scalar(self, *args: Any, **kwargs: Any) -> None:
        self._meant().put_scalar(*args, **kwargs)

    def put_image(self, *args: Any, **kwargs: Any) -> None:
        self._meant().put_image(*args, **kwargs)

    def _meant(self) -> Any:
        return super() if threading.get_ident() == self._thread else self._around
