"""Transforms of MMDetection's batches: padded images, data samples and all that they hold.

Images are padded at the right and the bottom. A transform applies to each image inside its own
``img_shape``; the results are padded again, so that boxes map exactly under a mirror too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from gradaug_det.core.fields import check_not_in_pixels, is_masks, refused
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.transforms import BatchTransform, Size
from gradaug_det.errors import GradAugError
from gradaug_det.mmdet.masks import DeviceMasks

_BOXES = ("bboxes", "priors")
_DEFAULT = GradAugOptions()
_SETTING = "GradAugHook's not_in_pixels"


class Batch(NamedTuple):
    """Images and data samples of a training step."""

    inputs: Tensor  # (N, C, H, W), normalised and padded
    samples: list[DetDataSample]  # ground truth and meta information of each image


class Padding(NamedTuple):
    """The data preprocessor's padding: to multiples of ``divisor`` pixels, with these values."""

    divisor: int = 32
    image: float = 0
    mask: int = 0
    semantic: int = 255

    @classmethod
    def of(cls, preprocessor: nn.Module | None) -> Padding:
        """Returns that of a detector's ``data_preprocessor``."""
        names = ("pad_size_divisor", "pad_value", "mask_pad_value", "seg_pad_value")
        found = (getattr(preprocessor, name, None) for name in names)
        return cls(*(d if f is None else f for f, d in zip(found, cls(), strict=True)))


def make_batch(inputs: Any, samples: Any) -> Batch:
    """Returns a batch with data elements of its own; the tensors are shared.

    Raises:
        GradAugError: these are not the inputs of a detector's plain training.
    """
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not samples:
        what = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise GradAugError(
            f"GradAug needs (N, C, H, W) images with data samples, this detector takes {what}: "
            "multi-branch (semi-supervised) and video training are not supported"
        )
    # Some detectors rename fields of the data elements that they are given.
    return Batch(inputs, [_copy(sample) for sample in samples])


def masks_on_device(batch: Batch) -> Batch:
    """Returns the batch with its bitmaps on its images' device; MMDetection keeps them on the
    host."""
    device = batch.inputs.device

    def move(value: Any) -> Any:
        return DeviceMasks.of(value, device) if type(value) is BitmapMasks else value

    return Batch(batch.inputs, [_copy(sample, move) for sample in batch.samples])


def _copy(
    element: BaseDataElement, change: Callable[[Any], Any] = lambda value: value
) -> BaseDataElement:
    new = type(element)(metainfo=element.metainfo)
    for name, value in element.items():
        nested = isinstance(value, BaseDataElement)
        new.set_data({name: _copy(value, change) if nested else change(value)})
    return new


def image_sizes(batch: Batch) -> list[Size]:
    """Returns (height, width) of each image without its padding."""
    whole = tuple(batch.inputs.shape[-2:])
    return [tuple(s.metainfo.get("img_shape", whole)[:2]) for s in batch.samples]


def transform_batch(
    batch: Batch, transform: BatchTransform, padding: Padding, options: GradAugOptions = _DEFAULT
) -> Batch:
    """Returns a batch as a sub-network sees it; the batch itself is not changed.

    Args:
        batch: after the detector's data preprocessor.
        transform: applied to each image at its own size.
        padding: how the transformed images are made one batch.
        options: a training in which images may be moved refuses what cannot be moved with them at
            once, whatever ``transform`` is.

    Raises:
        GradAugError: a field may live in pixels and is none of those that are known.
    """
    sizes = image_sizes(batch)
    images = [
        transform.image(image[:, :height, :width])
        for image, (height, width) in zip(batch.inputs, sizes, strict=True)
    ]
    shape = tuple(
        padding.divisor * math.ceil(max(image.shape[d] for image in images) / padding.divisor)
        for d in (1, 2)
    )
    inputs = torch.stack([_pad(image, shape, padding.image) for image in images])
    whole = tuple(batch.inputs.shape[-2:])
    samples = [
        _transform_sample(sample, _ImageTransform(transform, size, whole, shape, padding, options))
        for sample, size in zip(batch.samples, sizes, strict=True)
    ]
    return Batch(inputs, samples)


def _pad(pixels: Tensor, shape: Size, value: float) -> Tensor:
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, shape[1] - width, 0, shape[0] - height), value=value)


def _transform_sample(sample: DetDataSample, image: _ImageTransform) -> DetDataSample:
    new = type(sample)(metainfo=image.metainfo(sample.metainfo))
    for name, value in sample.items():
        if isinstance(value, InstanceData):
            fields = {k: image.instance_field(k, v) for k, v in value.items()}
            value = InstanceData(metainfo=value.metainfo, **fields)
        elif isinstance(value, PixelData):
            fields = {k: image.labels(k, v) for k, v in value.items()}
            value = PixelData(metainfo=value.metainfo, **fields)
        else:
            image.check(name, value, per_object=False)
        new.set_data({name: value})
    return new


class _ImageTransform(NamedTuple):
    """The transform of one image, and so of all that lives in its pixels."""

    transform: BatchTransform
    size: Size  # (height, width) of the image,
    whole: Size  # of the batch's padded images,
    shape: Size  # and of these after the transform
    padding: Padding
    options: GradAugOptions

    def check(self, name: str, value: Any, *, per_object: bool) -> None:
        check_not_in_pixels(name, value, self.options, _SETTING, per_object=per_object)

    def metainfo(self, meta: dict) -> dict:
        """Returns the transformed image's; what says nothing about pixels stays."""
        sizes = {self.size, self.whole, tuple(meta.get("ori_shape", self.size)[:2])}
        for name, value in meta.items():
            shape = tuple(getattr(value, "shape", ()))
            if len(shape) > 1 and sizes & {shape[-2:], shape[:2]}:
                self.check(name, value, per_object=False)
        height, width = self.transform.output_size(self.size)
        sizes = {"img_shape": (height, width)}
        sizes |= {"pad_shape": self.shape, "batch_input_shape": self.shape}
        new = meta | sizes
        if "scale_factor" in meta:
            x, y = meta["scale_factor"][:2]
            new["scale_factor"] = (x * width / self.size[1], y * height / self.size[0])
        if self.transform.flip and "flip" in meta:
            both = meta["flip"] and meta.get("flip_direction") == "horizontal"
            new["flip"], new["flip_direction"] = not both, None if both else "horizontal"
        return new

    def is_padded(self, size: Size) -> bool:
        # With pad_mask or pad_seg the data preprocessor pads masks as it pads images.
        return size != self.size or size == self.whole

    def instance_field(self, name: str, value: Any) -> Any:
        """Returns a field of ``InstanceData``, moved if it lives in pixels."""
        if name in self.options.not_in_pixels:
            return value
        if type(value) is HorizontalBoxes:
            return HorizontalBoxes(self.transform.boxes(value.tensor, self.size))
        if name in _BOXES and isinstance(value, Tensor):
            return self.transform.boxes(value, self.size)
        if isinstance(value, (BitmapMasks, PolygonMasks)):
            return self.masks(value)
        if isinstance(value, Tensor) and (
            name == "masks" or is_masks(name, value, [self.size, self.whole])
        ):
            return self.pixels(value, self.padding.mask)
        if isinstance(value, BaseBoxes) and self.options.moves_pixels:
            raise refused(name, type(value).__name__, _SETTING)
        self.check(name, value, per_object=True)
        return value

    def masks(self, masks: BitmapMasks | PolygonMasks) -> BitmapMasks | PolygonMasks:
        """Returns instance masks, of the image or of the padded image, moved."""
        height, width = self.size
        padded = self.is_padded((masks.height, masks.width))
        kept = masks.bits if isinstance(masks, DeviceMasks) else masks.masks
        if isinstance(masks, BitmapMasks):
            kept = kept[:, :height, :width]
        new = type(masks)(kept, height, width).resize(self.transform.output_size(self.size))
        new = new.flip("horizontal") if self.transform.flip else new
        return new.pad(self.shape, pad_val=self.padding.mask) if padded else new

    def labels(self, name: str, labels: Any) -> Any:
        """Returns (1, H, W) classes of pixels, moved, and padded with what is ignored."""
        if name == "sem_seg" and isinstance(labels, Tensor):
            return self.pixels(labels, self.padding.semantic)
        if self.options.moves_pixels and name not in self.options.not_in_pixels:
            raise refused(name, type(labels).__name__, _SETTING)
        return labels

    def pixels(self, pixels: Tensor, pad_value: int) -> Tensor:
        """Returns (R, H, W) masks or labels, of the image or of the padded image, moved."""
        height, width = self.size
        padded = self.is_padded(tuple(pixels.shape[-2:]))
        new = self.transform.masks(pixels[..., :height, :width])
        return _pad(new, self.shape, pad_value) if padded else new
