"""An MMDetection detector as Algorithm 1 sees it."""

from __future__ import annotations

from typing import Any

from torch import nn

from gradaug_det.core.detector import SlimmableDetector
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.regularizer import Losses
from gradaug_det.core.transforms import BatchTransform, Size
from gradaug_det.mmdet.backbone import slimmed_part
from gradaug_det.mmdet.batch import (
    Batch,
    Padding,
    image_sizes,
    make_batch,
    masks_on_device,
    transform_batch,
)
from gradaug_det.mmdet.soft_targets import soft_targets


class GradAugDetector(SlimmableDetector):
    """An MMDetection model in training."""

    find_slimmed = staticmethod(slimmed_part)
    make_soft_targets = staticmethod(soft_targets)

    def __init__(self, detector: nn.Module, options: GradAugOptions) -> None:
        super().__init__(detector, options)
        self.padding = Padding.of(getattr(detector, "data_preprocessor", None))

    def batch_of(self, args: tuple, kwargs: dict[str, Any]) -> Batch | None:
        given = dict(zip(("inputs", "data_samples", "mode"), args, strict=False), **kwargs)
        if given.get("mode") != "loss":
            return None
        return make_batch(given.get("inputs"), given.get("data_samples"))

    def on_device(self, batch: Batch) -> Batch:
        return masks_on_device(batch)

    def losses(self, batch: Batch) -> Losses:
        return self.loss_terms(self.module(batch.inputs, batch.samples, mode="loss"))

    def loss_terms(self, output: dict[str, Any]) -> Losses:
        # By MMEngine's rule those with "loss" in their name; others (accuracies) are only logged.
        _, terms = self.module.parse_losses(output)
        return {name: term for name, term in terms.items() if "loss" in name and name != "loss"}

    def features(self, batch: Batch) -> Any:
        return self.module.extract_feat(batch.inputs)

    @property
    def last(self) -> nn.Module:
        return self.module.neck if getattr(self.module, "with_neck", False) else self.backbone

    def transform(self, batch: Batch, transform: BatchTransform) -> Batch:
        return transform_batch(batch, transform, self.padding, self.options)

    def sizes(self, batch: Batch) -> list[Size]:
        return image_sizes(batch)
