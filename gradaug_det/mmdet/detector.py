"""An MMDetection detector as Algorithm 1 sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from gradaug_det.core.detector import SlimmableDetector
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.recording import ForwardRecorder
from gradaug_det.core.regularizer import Losses
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.mmdet.backbone import detector_backbone
from gradaug_det.mmdet.batch import Batch, Padding, image_sizes, transform_batch
from gradaug_det.mmdet.targets import Calls, soft_targets


class GradAugDetector(SlimmableDetector):
    """An MMDetection model in training.

    Args:
        detector: an MMDetection model with a slimmable ``backbone``, not wrapped for distribution.
        options: the settings.

    Attributes:
        autocast: the precision in which sub-networks' forward passes run.

    Raises:
        UnslimmableError: the backbone cannot be slimmed.
        ConfigError: the supervision or the norm policy does not fit the detector.
    """

    def __init__(self, detector: nn.Module, options: GradAugOptions) -> None:
        super().__init__(detector, detector_backbone(detector), options, soft_targets)
        self.padding = Padding.of(getattr(detector, "data_preprocessor", None))
        self.autocast: AbstractContextManager = nullcontext()

    @contextmanager
    def recording(self) -> Iterator[ForwardRecorder]:
        """Within the block, a recorder notes what soft targets are made of.

        Outside nothing of GradAug is attached to the detector.
        """
        recorder = ForwardRecorder(self.targets.record() if self.targets else {})
        recorder.start()
        try:
            yield recorder
        finally:
            recorder.close()

    def full_pass(self, batch: Batch) -> tuple[Losses, Calls]:
        """The detector's own losses, and what its heads gave on the way."""
        with self.recording() as recorder:
            losses = self.module(batch.inputs, batch.samples, mode="loss")
            return named_losses(self.module, losses), recorder.take()

    def sub_network_pass(self, batch: Batch, soft_target: Calls, sub: SubNetwork) -> Losses:
        """Losses of the sub-network, by name: ``soft_*`` and ``labels_*``, weighted."""
        with self.autocast:
            return self._sub_network_pass(batch, soft_target, sub)

    def _sub_network_pass(self, batch: Batch, soft_target: Calls, sub: SubNetwork) -> Losses:
        labels, soft = {}, {}
        inputs, samples = transform_batch(batch, sub.transform, self.padding, self.options)
        if self.options.uses_labels:
            with _features_of(self.module) as kept, no_traces(self.module, self.backbone):
                labels = named_losses(self.module, self.module(inputs, samples, mode="loss"))
        if self.targets:
            # `both` runs the backbone once.
            features = kept[0] if labels else self.module.extract_feat(inputs)
            soft = self.targets.losses(features, soft_target, sub.transform, image_sizes(batch))
        return self.weighted(labels, soft, sub)


def named_losses(detector: nn.Module, output: dict[str, Any]) -> Losses:
    """The terms of what a detector returns in ``loss`` mode that make up its total.

    By MMEngine's rule those with "loss" in their name; the others (accuracies) are only logged.
    """
    _, terms = detector.parse_losses(output)
    return {name: term for name, term in terms.items() if "loss" in name and name != "loss"}


@contextmanager
def _features_of(detector: nn.Module) -> Iterator[list[Any]]:
    """Within the block, notes what ``extract_feat`` returns: what the last part of it does."""
    kept: list[Any] = []
    last = detector.neck if getattr(detector, "with_neck", False) else detector.backbone
    handle = last.register_forward_hook(lambda _m, _i, out: kept.append(out))
    try:
        yield kept
    finally:
        handle.remove()


@contextmanager
def no_traces(detector: nn.Module, backbone: nn.Module) -> Iterator[None]:
    """Within the block, a training forward leaves no counters behind in necks and heads.

    Some heads keep moving averages or class counts as buffers or plain numbers; these are the full
    network's alone, like running statistics.
    """
    inside = set(backbone.modules())
    layers = [layer for layer in detector.modules() if layer not in inside]
    numbers = [
        {k: v for k, v in vars(layer).items() if type(v) in (int, float)} for layer in layers
    ]
    buffers = [dict(layer._buffers) for layer in layers]
    try:
        for layer, own in zip(layers, buffers, strict=True):
            # Copies, not a later restore: autograd may need what the forward pass read.
            layer._buffers.update({k: v.clone() for k, v in own.items() if v is not None})
        yield
    finally:
        for layer, old, own in zip(layers, numbers, buffers, strict=True):
            vars(layer).update(old)
            layer._buffers.update(own)
