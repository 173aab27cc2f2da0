"""Transforms of MMDetection's batches: padded images, data samples and all that they hold.

Images are padded at the right and the bottom. A transform applies to each image inside its own
``img_shape``; the results are padded again, so that boxes map exactly under a mirror too.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import BaseBoxes, HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from torch import Tensor, nn

from gradaug_det.core.transforms import BatchTransform, Size
from gradaug_det.errors import GradAugError

_BOXES = ("bboxes", "priors")


class Batch(NamedTuple):
    """What a detector takes.

    Attributes:
        inputs: (N, C, H, W) images, normalised and padded.
        samples: ground truth and meta information of each.
    """

    inputs: Tensor
    samples: list[DetDataSample]


class Padding(NamedTuple):
    """How the data preprocessor pads: to multiples of ``divisor`` pixels, with these values."""

    divisor: int = 32
    image: float = 0
    mask: int = 0
    semantic: int = 255

    @classmethod
    def of(cls, preprocessor: nn.Module | None) -> Padding:
        """That of a detector's ``data_preprocessor``."""
        names = ("pad_size_divisor", "pad_value", "mask_pad_value", "seg_pad_value")
        found = (getattr(preprocessor, name, None) for name in names)
        return cls(*(d if f is None else f for f, d in zip(found, cls(), strict=True)))


def make_batch(inputs: Any, samples: Any) -> Batch:
    """A batch as it is now: its data elements are new ones, the tensors are shared.

    Some detectors rename fields of the data elements that they are given.

    Raises:
        GradAugError: these are not the inputs of a detector's plain training.
    """
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not samples:
        what = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise GradAugError(
            f"GradAug needs (N, C, H, W) images with data samples, this detector takes {what}: "
            "multi-branch (semi-supervised) and video training are not supported"
        )
    return Batch(inputs, [_copy(sample) for sample in samples])


def _copy(element: BaseDataElement) -> BaseDataElement:
    new = type(element)(metainfo=element.metainfo)
    for name, value in element.items():
        new.set_data({name: _copy(value) if isinstance(value, BaseDataElement) else value})
    return new


def image_sizes(batch: Batch) -> list[Size]:
    """(height, width) of each image without its padding."""
    whole = tuple(batch.inputs.shape[-2:])
    return [tuple(s.metainfo.get("img_shape", whole)[:2]) for s in batch.samples]


def transform_batch(batch: Batch, transform: BatchTransform, padding: Padding) -> Batch:
    """A batch as a sub-network sees it; the batch itself is not changed.

    Args:
        batch: after the detector's data preprocessor.
        transform: applied to each image at its own size.
        padding: how the transformed images are made one batch.
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
    places = (_Place(transform, size, whole, shape, padding) for size in sizes)
    samples = [_transform_sample(s, place) for s, place in zip(batch.samples, places, strict=True)]
    return Batch(inputs, samples)


def _pad(pixels: Tensor, shape: Size, value: float) -> Tensor:
    height, width = pixels.shape[-2:]
    return F.pad(pixels, (0, shape[1] - width, 0, shape[0] - height), value=value)


def _transform_sample(sample: DetDataSample, place: _Place) -> DetDataSample:
    new = type(sample)(metainfo=place.metainfo(sample.metainfo))
    for name, value in sample.items():
        if isinstance(value, InstanceData):
            fields = {k: place.instance_field(k, v) for k, v in value.items()}
            value = InstanceData(metainfo=value.metainfo, **fields)
        elif isinstance(value, PixelData):
            fields = {k: place.labels(k, v) for k, v in value.items()}
            value = PixelData(metainfo=value.metainfo, **fields)
        else:
            raise _unknown(name, value)
        new.set_data({name: value})
    return new


class _Place(NamedTuple):
    """Where an image's pixels go.

    Attributes:
        transform: what is done to the image.
        size: (height, width) of the image.
        whole: that of the batch's padded images.
        shape: that of the padded images after the transform.
        padding: what to pad with.
    """

    transform: BatchTransform
    size: Size
    whole: Size
    shape: Size
    padding: Padding

    def metainfo(self, meta: dict) -> dict:
        """Meta information of the transformed image; what says nothing about pixels stays."""
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
        """Whether masks of this size are padded like the images (``pad_mask``, ``pad_seg``)."""
        return size != self.size or size == self.whole

    def instance_field(self, name: str, value: Any) -> Any:
        """A field of ``InstanceData``, moved if it lives in pixels."""
        if type(value) is HorizontalBoxes:
            return HorizontalBoxes(self.transform.boxes(value.tensor, self.size))
        if name in _BOXES and isinstance(value, Tensor):
            return self.transform.boxes(value, self.size)
        if isinstance(value, (BitmapMasks, PolygonMasks)):
            return self.masks(value)
        if name == "masks" and isinstance(value, Tensor):
            return self.pixels(value, self.padding.mask)
        if "keypoints" in name or isinstance(value, BaseBoxes):
            raise _unknown(name, value)
        return value  # classes, scores, ids: nothing that lives in pixels

    def masks(self, masks: BitmapMasks | PolygonMasks) -> BitmapMasks | PolygonMasks:
        """Instance masks, of the image or of the padded image."""
        height, width = self.size
        padded = self.is_padded((masks.height, masks.width))
        kept = masks.masks
        if isinstance(masks, BitmapMasks):
            kept = kept[:, :height, :width]
        new = type(masks)(kept, height, width).resize(self.transform.output_size(self.size))
        new = new.flip("horizontal") if self.transform.flip else new
        return new.pad(self.shape, pad_val=self.padding.mask) if padded else new

    def labels(self, name: str, labels: Tensor) -> Tensor:
        """(1, H, W) class of each pixel, padded with the class that is ignored."""
        if not isinstance(labels, Tensor):
            raise _unknown(name, labels)
        return self.pixels(labels, self.padding.semantic)

    def pixels(self, pixels: Tensor, pad_value: int) -> Tensor:
        """(R, H, W) masks or labels, of the image or of the padded image."""
        height, width = self.size
        padded = self.is_padded(tuple(pixels.shape[-2:]))
        new = self.transform.masks(pixels[..., :height, :width])
        return _pad(new, self.shape, pad_value) if padded else new


def _unknown(name: str, value: Any) -> GradAugError:
    return GradAugError(
        f"cannot transform the field {name!r} ({type(value).__name__}): GradAug knows horizontal "
        "boxes, bitmap and polygon masks, tensors of masks and semantic labels"
    )
