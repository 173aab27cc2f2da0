"""MMDetection's own ResNets, registered under names that promise they can be slimmed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmcv.ops import SyncBatchNorm
from mmdet.models.backbones import ResNet, ResNetV1d, ResNeXt
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.roi_heads.roi_extractors import BaseRoIExtractor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import Tensor, nn

from gradaug_det.core import slimming as core
from gradaug_det.errors import UnslimmableError


class _Slimmable:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Deriving the plan now turns a layer that cannot be slimmed into an error before training.
        core.slim_plan(self)


@MODELS.register_module()
class SlimmableResNet(_Slimmable, ResNet):
    """MMDetection's ResNet; parameter names, checkpoints and arguments are its own.

    Raises:
        UnslimmableError: names the layer that cannot be slimmed, e.g. a deformable convolution.
    """


@MODELS.register_module()
class SlimmableResNetV1d(_Slimmable, ResNetV1d):
    """MMDetection's ResNetV1d (deep stem, average pooling in shortcuts), slimmable."""


@MODELS.register_module()
class SlimmableResNeXt(_Slimmable, ResNeXt):
    """MMDetection's ResNeXt, slimmable by whole groups."""


def slimmed_part(
    detector: nn.Module, slim: str = "backbone", keep_whole: Sequence[str] = ()
) -> nn.Module:
    """Returns what of a detector is narrow in a sub-network, with its plan.

    Args:
        slim, keep_whole: see :class:`gradaug_det.core.options.GradAugOptions`.

    Raises:
        UnslimmableError: the detector has no ``backbone``, or a layer cannot be slimmed.
        ConfigError: it has no part of a name to be kept whole.
    """
    slimmed = core.detector_backbone(detector)
    if slim == "detector":
        slimmed = core.uncompiled(detector)
    for name, layer in slimmed.named_modules():
        if isinstance(layer, SyncBatchNorm):
            # It would write the sub-networks' statistics into the full network's.
            raise UnslimmableError(
                f"cannot slim layer '{name}': MMCV's SyncBatchNorm (MMSyncBN) is not one of "
                "PyTorch's; use norm_cfg=dict(type='SyncBN')"
            )
    if slim == "backbone":
        core.slim_plan(slimmed)
        return slimmed
    example = core.ExamplePass(_run_blank, (BaseRoIExtractor,), tuple(keep_whole))
    return core.slim_detector(slimmed, example)


def _run_blank(detector: nn.Module) -> None:
    mean = getattr(detector.data_preprocessor, "mean", None)  # of the image's channels
    channels = 3 if mean is None else len(mean)
    # Large enough for seven levels.
    run_layers(detector, next(detector.parameters()).new_zeros(1, channels, 128, 160))


def run_layers(detector: nn.Module, image: Tensor) -> None:
    """Runs a detector up to its predictions of a prepared image (1, 3, H, W), and of one box."""
    size = tuple(image.shape[2:])
    shape = {"img_shape": size, "ori_shape": size, "scale_factor": (1.0, 1.0)}
    sample = DetDataSample(metainfo=dict(shape, batch_input_shape=size, flip=False))
    if not isinstance(detector, TwoStageDetector):
        detector(image, [sample], mode="tensor")
        return
    # One box in place of a thousand proposals, with a mask for a hundred of them.
    features = detector.extract_feat(image)
    if detector.with_rpn:
        detector.rpn_head(features)
    if getattr(detector, "with_semantic_head", False):
        detector.semantic_head(features)
    box = InstanceData(bboxes=image.new_tensor([[0.0, 0.0, 48.0, 48.0]]))
    detector.roi_head(features, [box], [sample])
