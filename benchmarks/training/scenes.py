"""Random images with objects, of which each framework makes a batch of its own types."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.training.workload import Workload

OBJECTS = 6


@dataclass(frozen=True)
class Scene:
    """An image and its objects.

    Args:
        image: (3, H, W) uint8.
        boxes: (R, 4) XYXY in pixels.
        classes: (R,).
    """

    image: Tensor
    boxes: Tensor
    classes: Tensor


def random_scenes(workload: Workload, num_classes: int) -> list[Scene]:
    """A batch of scenes, always the same, with objects of a sixth to a half of the image's side."""
    return [_random_scene(workload.size, num_classes, seed) for seed in range(workload.batch_size)]


def _random_scene(size: tuple[int, int], num_classes: int, seed: int) -> Scene:
    rng = np.random.default_rng(seed)
    whole = np.array(size[::-1], dtype=np.float64)
    extent = rng.uniform(whole / 6, whole / 2, (OBJECTS, 2))
    corner = rng.uniform(0, 1, (OBJECTS, 2)) * (whole - extent)
    boxes = np.concatenate([corner, corner + extent], axis=1)
    image = rng.integers(0, 256, (3, *size), dtype=np.uint8)
    classes = rng.integers(0, num_classes, OBJECTS)
    return Scene(
        torch.from_numpy(image),
        torch.as_tensor(boxes, dtype=torch.float32),
        torch.as_tensor(classes, dtype=torch.long),
    )


def polygons(scene: Scene, corners: int = 16) -> list[np.ndarray]:
    """The outline of each object, an ellipse in its box, as x, y, x, y, ..."""
    angles = torch.arange(corners) * (2 * math.pi / corners)
    circle = torch.stack([angles.cos(), angles.sin()], dim=1)
    middle = (scene.boxes[:, None, :2] + scene.boxes[:, None, 2:]) / 2
    radius = (scene.boxes[:, None, 2:] - scene.boxes[:, None, :2]) / 2
    return list((middle + radius * circle).flatten(1).numpy())
