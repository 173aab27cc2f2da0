"""Transforms of Detectron2's batches: images, instances, proposals, semantic labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks
from torch import Tensor

from gradaug_det.core.transforms import BatchTransform, Size
from gradaug_det.errors import GradAugError

Batch = list[dict[str, Any]]


def transform_batch(batch: Batch, transform: BatchTransform) -> Batch:
    """A batch as a sub-network sees it; the batch itself is not changed.

    Args:
        batch: Detectron2's ``batched_inputs``: dicts with ``image`` (C, H, W), and perhaps
            ``instances``, ``proposals`` and ``sem_seg`` (H, W).
        transform: applied to each image at its own size.
    """
    return [_transform_input(item, transform) for item in batch]


def _transform_input(item: dict[str, Any], transform: BatchTransform) -> dict[str, Any]:
    size = tuple(item["image"].shape[-2:])
    new = dict(item, image=transform.image(item["image"]))
    for key in ("instances", "proposals"):
        if key in item:
            new[key] = transform_instances(item[key], transform, size)
    if "sem_seg" in item:
        new["sem_seg"] = transform.masks(item["sem_seg"][None])[0]
    return new


def transform_instances(instances: Instances, transform: BatchTransform, size: Size) -> Instances:
    """``Instances`` of an image of ``size`` (height, width), moved into the transformed image."""
    new = Instances(transform.output_size(size))
    for name, value in instances.get_fields().items():
        new.set(name, _transform_field(name, value, transform, size))
    return new


def _transform_field(name: str, value: Any, transform: BatchTransform, size: Size) -> Any:
    if type(value) is Boxes:
        return Boxes(transform.boxes(value.tensor, size))
    if isinstance(value, BitMasks):
        return BitMasks(transform.masks(value.tensor))
    if isinstance(value, PolygonMasks):
        return PolygonMasks([[_polygon(p, transform, size) for p in item] for item in value])
    if isinstance(value, Keypoints) and not transform.flip:
        points = transform.points(value.tensor[..., :2], size)
        return Keypoints(torch.cat([points, value.tensor[..., 2:]], dim=-1))
    if isinstance(value, (Tensor, list)):
        return value  # classes, scores, ids: nothing that lives in pixels
    advice = (
        "mirroring needs the data set's left-right pairs; set GRADAUG.FLIP_PROB to 0"
        if isinstance(value, Keypoints)
        else "GradAug knows Boxes, BitMasks, PolygonMasks and Keypoints"
    )
    raise GradAugError(f"cannot transform the field {name!r} ({type(value).__name__}): {advice}")


def _polygon(polygon: np.ndarray, transform: BatchTransform, size: Size) -> np.ndarray:
    points = torch.from_numpy(np.asarray(polygon, dtype=np.float64)).reshape(-1, 2)
    return transform.points(points, size).reshape(-1).numpy()
