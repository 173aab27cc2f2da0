"""Transforms of a batch that a sub-network sees, and of everything that lives in its pixels.

One :class:`BatchTransform` per sub-network: a random scale, then perhaps a mirror image. Boxes are
XYXY in pixels; sizes are (height, width) in pixels of the image before the transform.

Source: GradAug, section 3.1 (random scale first of all) and Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

Size = tuple[int, int]


@dataclass(frozen=True)
class BatchTransform:
    """Resize by ``scale``, then mirror left to right if ``flip``."""

    scale: float = 1.0
    flip: bool = False

    def output_size(self, size: Size) -> Size:
        """Returns (height, width) after the transform; never below one pixel."""
        height, width = size
        return max(1, round(height * self.scale)), max(1, round(width * self.scale))

    def _resize(self, pixels: Tensor, mode: InterpolationMode) -> Tensor:
        size = tuple(pixels.shape[-2:])
        if self.output_size(size) != size:
            pixels = _resize(pixels, self.output_size(size), mode)
        return tvf.horizontal_flip(pixels) if self.flip else pixels

    def image(self, image: Tensor) -> Tensor:
        """(..., C, H, W) -> (..., C, H', W'), bilinear with antialiasing, dtype kept."""
        return self._resize(image, InterpolationMode.BILINEAR)

    def masks(self, masks: Tensor) -> Tensor:
        """(R, H, W) label or binary masks -> (R, H', W'), nearest pixel, dtype kept."""
        if masks.shape[0] == 0:
            return masks.new_zeros((0, *self.output_size(tuple(masks.shape[-2:]))))
        if masks.dtype == torch.bool:  # which torchvision would resize as floats
            return self.masks(masks.view(torch.uint8)).view(torch.bool)
        return self._resize(masks, InterpolationMode.NEAREST)

    def _ratio(self, size: Size) -> tuple[float, float]:
        height, width = self.output_size(size)
        return width / size[1], height / size[0]

    def boxes(self, boxes: Tensor, size: Size) -> Tensor:
        """(..., 4) XYXY boxes in an image of ``size`` -> the boxes in the transformed image."""
        x, y = self._ratio(size)
        boxes = boxes * boxes.new_tensor([x, y, x, y])
        return _mirror(boxes, self.output_size(size)[1]) if self.flip else boxes

    def inverse_boxes(self, boxes: Tensor, size: Size) -> Tensor:
        """Undoes :meth:`boxes`; ``size`` is that of the image before the transform."""
        if self.flip:
            boxes = _mirror(boxes, self.output_size(size)[1])
        x, y = self._ratio(size)
        return boxes / boxes.new_tensor([x, y, x, y])

    def points(self, points: Tensor, size: Size) -> Tensor:
        """(..., 2) points x, y in an image of ``size`` -> in the transformed image."""
        boxes = self.boxes(torch.cat([points, points], dim=-1), size)
        return boxes[..., :2]

    def deltas(self, deltas: Tensor) -> Tensor:
        """(..., 4) box deltas (dx, dy, dw, dh) of a box -> of the transformed box."""
        # Relative to the box: a scale leaves them, a mirror turns dx around. (A size rounded to
        # whole pixels changes the aspect ratio of box and target alike.)
        return deltas * deltas.new_tensor([-1, 1, 1, 1]) if self.flip else deltas

    def box_crops(self, crops: Tensor) -> Tensor:
        """(..., M, M) maps cropped from a box -> the maps of the transformed box."""
        return crops.flip(-1) if self.flip else crops


def _resize(pixels: Tensor, size: Size, mode: InterpolationMode) -> Tensor:
    if mode is InterpolationMode.NEAREST:
        return tvf.resize(pixels, list(size), mode)
    if pixels.dtype == torch.uint8 and 1 in size:
        # torch 2.9's uint8 kernel fails an internal assertion on images of one row or column.
        return _resize(pixels.float(), size, mode).round().to(torch.uint8)
    if size[1] == 1 < size[0]:
        # Its float kernel gives a result of one column the first row's value in every row.
        return _resize(pixels.mT.contiguous(), size[::-1], mode).mT
    return tvf.resize(pixels, list(size), mode, antialias=True)


def _mirror(boxes: Tensor, width: int) -> Tensor:
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack([width - right, top, width - left, bottom], dim=-1)
