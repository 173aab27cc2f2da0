"""Binary masks (H, W) and COCO's segmentations of them: polygons, run lengths, boxes."""

from __future__ import annotations

from typing import Any

import contourpy
import numpy as np
from pycocotools import mask as coco_mask
from scipy import ndimage

Polygon = list[float]
"""x0, y0, x1, y1, ... in pixels; integer coordinates are pixel corners, as in COCO."""


def keep_large_components(mask: np.ndarray, min_pixels: int, min_share: float) -> np.ndarray:
    """Drops 4-connected parts below ``min_pixels`` or ``min_share`` of the largest, which stays."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels[mask], minlength=1)
    least = min(max(min_pixels, min_share * sizes.max()), sizes.max())
    return (sizes >= max(least, 1))[labels]  # sizes[0], the background's, is 0


def fill_holes(mask: np.ndarray, min_open: int | None = None) -> np.ndarray:
    """Fills enclosed background; holes of at least ``min_open`` pixels stay (None: fills all)."""
    filled = ndimage.binary_fill_holes(mask)
    if min_open is None:
        return filled
    holes, _ = ndimage.label(filled & ~mask)
    is_open = np.bincount(holes.ravel()) >= min_open
    return filled & ~(is_open[holes] & ~mask)


def mask_to_box(mask: np.ndarray) -> list[int]:
    """Returns the tight box of a non-empty mask: x, y, width, height in pixels."""
    ((rows, columns),) = ndimage.find_objects(mask.astype(np.uint8))
    return [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]


def mask_to_rle(mask: np.ndarray, compressed: bool) -> dict[str, Any]:
    """Returns ``{"size": [H, W], "counts": ...}``, ready for JSON.

    ``counts`` is pycocotools' compressed string, or else COCO's list of numbers.
    """
    size = list(mask.shape)
    if compressed:
        packed = coco_mask.encode(np.asfortranarray(mask, np.uint8))
        return {"size": size, "counts": packed["counts"].decode("ascii")}
    # The first run counts background, even if there is none: hence the zero in front.
    flat = np.concatenate([[False], mask.ravel(order="F")])
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(flat)), [mask.size]])
    return {"size": size, "counts": np.diff(bounds).tolist()}


def mask_to_polygons(mask: np.ndarray) -> list[Polygon]:
    """Returns outlines of a mask as COCO polygons, which decode to the mask again.

    The outline runs through the middles of the pixel edges between inside and outside: smooth
    on diagonals and, unlike a contour through pixel centres, without losing half a pixel all
    round (a tenth of a small object's area). COCO decodes a list of polygons to their union, so
    a hole cannot be one of them: a component with a hole is cut in two through the hole.

    Returns:
        One polygon for each 4-connected, hole-free part, in raster order.
    """
    labels, count = ndimage.label(mask)
    polygons: list[Polygon] = []
    for number in range(1, count + 1):
        component = labels == number
        # The first in raster order is the outline, whatever follows lies inside of it.
        outline, *holes = sorted(_contours(component), key=lambda line: (line[0, 1], line[0, 0]))
        if not holes:
            polygons.append(_drop_straight_points(outline).ravel().tolist())
            continue
        xs = holes[0][:, 0]
        cut = int(xs.min() + xs.max() + 1) // 2  # strictly inside the hole or on its right border
        for half in (slice(cut), slice(cut, None)):
            part = np.zeros_like(component)
            part[:, half] = component[:, half]
            polygons.extend(mask_to_polygons(part))
    return polygons


def _contours(component: np.ndarray) -> list[np.ndarray]:
    """Returns closed lines (N, 2) in x, y of pixel corners, each from its topmost leftmost point.

    Marching squares between 0 and 1 pass the middles of the pixel edges. Where two pixels touch by
    a corner, the lines keep them apart, as 4-connected components are.
    """
    heights = np.pad(component, 1).astype(np.float64)
    lines = []
    for line in contourpy.contour_generator(z=heights).lines(0.5):
        points = line[:-1] - 0.5  # from centres of padded pixels to corners; the last is the first
        first = np.lexsort((points[:, 0], points[:, 1]))[0]
        lines.append(np.roll(points, -first, axis=0))
    return lines


def _drop_straight_points(points: np.ndarray) -> np.ndarray:
    before = points - np.roll(points, 1, axis=0)
    after = np.roll(points, -1, axis=0) - points
    return points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
