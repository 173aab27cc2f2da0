"""Transforms of Detectron2's batches: images, instances, proposals, semantic labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from torch import Tensor

from gradaug_det.core.fields import check_not_in_pixels, is_masks, refused
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.transforms import BatchTransform, Size
from gradaug_det.errors import GradAugError

Batch = list[dict[str, Any]]
_DEFAULT = GradAugOptions()
_SETTING = "GRADAUG.NOT_IN_PIXELS"


def transform_batch(
    batch: Batch, transform: BatchTransform, options: GradAugOptions = _DEFAULT
) -> Batch:
    """Returns a batch as a sub-network sees it; the batch itself is not changed.

    Args:
        batch: Detectron2's ``batched_inputs``: dicts with ``image`` (C, H, W), and perhaps
            ``instances``, ``proposals`` and ``sem_seg`` (H, W).
        transform: applied to each image at its own size.
        options: a training in which images may be moved refuses what cannot be moved with them at
            once, whatever ``transform`` is.

    Raises:
        GradAugError: a field may live in pixels and is none of those that are known.
    """
    return [_transform_input(item, transform, options) for item in batch]


def _transform_input(
    item: dict[str, Any], transform: BatchTransform, options: GradAugOptions
) -> dict[str, Any]:
    size = tuple(item["image"].shape[-2:])
    new = dict(item, image=transform.image(item["image"]))
    for key, value in item.items():
        if key in ("instances", "proposals"):
            new[key] = transform_instances(value, transform, size, options)
        elif key == "sem_seg" or _is_mask(key, value, size):
            new[key] = transform.masks(value[None])[0]
        elif key != "image":
            check_not_in_pixels(key, value, options, _SETTING, per_object=False)
    return new


def _is_mask(key: str, value: Any, size: Size) -> bool:
    # As that of the padding of square crops.
    named = isinstance(value, Tensor) and value.dim() == 2 and key.endswith("mask")
    return named and is_masks(key, value[None], [size])


def transform_instances(
    instances: Instances, transform: BatchTransform, size: Size, options: GradAugOptions = _DEFAULT
) -> Instances:
    """Moves the ``Instances`` of an image of ``size`` (height, width) into the transformed image.

    Raises:
        GradAugError: see :func:`transform_batch`.
    """
    new = Instances(transform.output_size(size))
    for name, value in instances.get_fields().items():
        new.set(name, _transform_field(name, value, transform, size, options))
    return new


def _transform_field(
    name: str, value: Any, transform: BatchTransform, size: Size, options: GradAugOptions
) -> Any:
    if name in options.not_in_pixels:
        return value
    if type(value) is Boxes:
        return Boxes(transform.boxes(value.tensor, size))
    if isinstance(value, BitMasks):
        return BitMasks(transform.masks(value.tensor))
    if isinstance(value, PolygonMasks):
        return PolygonMasks([[_polygon(p, transform, size) for p in item] for item in value])
    if isinstance(value, Keypoints) and not transform.flip and not options.flip_prob:
        points = transform.points(value.tensor[..., :2], size)
        return Keypoints(torch.cat([points, value.tensor[..., 2:]], dim=-1))
    if isinstance(value, Tensor) and is_masks(name, value, [size]):
        return transform.masks(value)
    if not options.moves_pixels:
        return value
    # Refused in the first step, whatever its transform is, and not in the one that draws a scale.
    if isinstance(value, Keypoints):
        raise GradAugError(
            f"cannot transform the field {name!r} (Keypoints): mirroring needs the data set's "
            "left-right pairs; set GRADAUG.FLIP_PROB to 0"
        )
    if not isinstance(value, (Tensor, np.ndarray, list, tuple)):
        raise refused(name, type(value).__name__, _SETTING)
    check_not_in_pixels(name, value, options, _SETTING, per_object=True)
    return value


def _polygon(polygon: np.ndarray, transform: BatchTransform, size: Size) -> np.ndarray:
    points = torch.from_numpy(np.asarray(polygon, dtype=np.float64)).reshape(-1, 2)
    return transform.points(points, size).reshape(-1).numpy()
