"""MMDetection's bitmaps as a tensor, where the detector is."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from mmcv.ops import roi_align
from mmdet.structures.mask import BitmapMasks
from torch import Tensor
from torch.nn.functional import pad


class DeviceMasks(BitmapMasks):
    """Bitmaps that are resized, mirrored, padded and cropped on a device, to the same pixels as
    ``BitmapMasks`` on the host, which replayed steps have. What else is asked of them is done
    there.

    Args:
        bits: (R, height, width), of type uint8.
    """

    def __init__(self, bits: Tensor, height: int, width: int) -> None:
        self.bits, self.height, self.width = bits, height, width

    @classmethod
    def of(cls, masks: BitmapMasks, device: torch.device) -> DeviceMasks:
        """Returns the same masks on a device."""
        bits = torch.from_numpy(np.ascontiguousarray(masks.masks)).to(device)
        return cls(bits, masks.height, masks.width)

    cat = BitmapMasks.cat  # on the host

    @cached_property
    def masks(self) -> np.ndarray:
        """All bitmaps on the host."""
        return self.bits.cpu().numpy()

    def __len__(self) -> int:
        return len(self.bits)

    def resize(self, out_shape: tuple[int, int], interpolation: str = "nearest") -> DeviceMasks:
        bits = self.bits
        for dim, new in enumerate(out_shape, start=1):
            old = bits.shape[dim]
            # The pixel that OpenCV takes, in its arithmetic.
            pixels = torch.arange(new, dtype=torch.float64, device=bits.device) * (1 / (new / old))
            bits = bits.index_select(dim, pixels.long().clamp(max=old - 1))
        return DeviceMasks(bits, *out_shape)

    def flip(self, flip_direction: str = "horizontal") -> DeviceMasks:
        dims = {"horizontal": [2], "vertical": [1], "diagonal": [1, 2]}[flip_direction]
        return DeviceMasks(self.bits.flip(dims), self.height, self.width)

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> DeviceMasks:
        missing = (0, out_shape[1] - self.width, 0, out_shape[0] - self.height)
        return DeviceMasks(pad(self.bits, missing, value=pad_val), *out_shape)

    def to_tensor(self, dtype: torch.dtype, device: Any) -> Tensor:
        return self.bits.to(device, dtype, copy=True)

    def crop_and_resize(
        self,
        bboxes: np.ndarray | Tensor,
        out_shape: tuple[int, int],
        inds: np.ndarray | Tensor,
        device: Any = "cpu",
        interpolation: str = "bilinear",
        binarize: bool = True,
    ) -> BitmapMasks:
        if not len(self) or not len(bboxes):
            return BitmapMasks([], *out_shape)
        bits, boxes = self.bits.to(device), torch.as_tensor(bboxes, device=device)
        index = torch.as_tensor(inds, device=device).to(boxes.dtype)
        # Each mask once, and not once for each of its boxes.
        rois = torch.cat([index[:, None], boxes], dim=1)
        crops = roi_align(bits[:, None].to(boxes.dtype), rois, out_shape, 1.0, 0, "avg", True)
        crops = crops.squeeze(1)
        return BitmapMasks((crops >= 0.5 if binarize else crops).cpu().numpy(), *out_shape)
