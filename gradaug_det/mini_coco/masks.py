"""Binary masks to COCO's segmentations: connected components, polygons, run lengths, boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradaug_det.errors import ConfigError

Polygon = list[float]
"""x0, y0, x1, y1, ... in pixels; integer coordinates are pixel corners, as in COCO."""


def label_components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Number the 4-connected components of a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        ``labels`` (H, W) int32: 0 outside the mask, 1..n inside; and n.
    """
    height, width = mask.shape
    padded = np.zeros((height, width + 2), np.int8)
    padded[:, 1:-1] = mask
    step = np.diff(padded, axis=1)
    rows, starts = np.nonzero(step == 1)
    ends = np.nonzero(step == -1)[1]
    parent = list(range(len(rows)))

    def find(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    first = np.searchsorted(rows, np.arange(height + 1)).tolist()
    start, end = starts.tolist(), ends.tolist()
    for row in range(1, height):
        above, above_end, here_end = first[row - 1], first[row], first[row + 1]
        here = above_end
        while above < above_end and here < here_end:
            if start[above] < end[here] and start[here] < end[above]:
                parent[find(here)] = find(above)
            if end[above] < end[here]:
                above += 1
            else:
                here += 1
    roots: dict[int, int] = {}
    labels = np.zeros(mask.shape, np.int32)
    for run, row in enumerate(rows.tolist()):
        labels[row, start[run] : end[run]] = roots.setdefault(find(run), len(roots) + 1)
    return labels, len(roots)


def keep_large_components(mask: np.ndarray, min_pixels: int, min_share: float) -> np.ndarray:
    """Drop components below ``min_pixels`` or ``min_share`` of the largest; the largest stays."""
    labels, count = label_components(mask)
    if count == 0:
        return mask.copy()
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    keep = sizes >= min(max(min_pixels, min_share * sizes.max()), sizes.max())
    return keep[labels]


def fill_holes(mask: np.ndarray, min_open: int | None = None) -> np.ndarray:
    """Fill enclosed background; holes of at least ``min_open`` pixels stay (None: fill all)."""
    padded = np.pad(~mask, 1, constant_values=True)
    labels, count = label_components(padded)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    fill = np.ones(count + 1, bool) if min_open is None else sizes < min_open
    fill[0] = False
    fill[labels[0, 0]] = False
    return mask | fill[labels][1:-1, 1:-1]


def mask_to_box(mask: np.ndarray) -> list[int]:
    """The tight box of a non-empty (H, W) mask: x, y, width, height in pixels."""
    xs = np.flatnonzero(mask.any(axis=0))
    ys = np.flatnonzero(mask.any(axis=1))
    return [int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1)]


def mask_to_rle(mask: np.ndarray, compressed: bool) -> dict[str, Any]:
    """Run lengths of a mask: COCO's list of counts, or pycocotools' compressed string.

    Args:
        mask: (H, W) bool.
        compressed: True needs pycocotools.

    Returns:
        ``{"size": [H, W], "counts": list or str}``, ready for JSON.

    Raises:
        ConfigError: ``compressed`` without pycocotools installed.
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], changes, [flat.size]])
    counts = np.diff(bounds).tolist()
    if flat[0]:
        counts.insert(0, 0)  # the first run counts background, even if there is none
    rle = {"size": list(mask.shape), "counts": counts}
    if not compressed:
        return rle
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise ConfigError(
            "segmentation", "needs pycocotools unless it is 'polygon': install it, or use that"
        ) from error
    packed = coco_mask.frPyObjects(rle, *mask.shape)
    return {"size": rle["size"], "counts": packed["counts"].decode("ascii")}


def rle_to_mask(rle: dict[str, Any]) -> np.ndarray:
    """The (H, W) bool mask of `mask_to_rle`'s result; compressed counts need pycocotools."""
    height, width = rle["size"]
    if isinstance(rle["counts"], str):
        from pycocotools import mask as coco_mask

        return coco_mask.decode(rle).astype(bool)
    counts = np.asarray(rle["counts"])
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape((height, width), order="F")


def mask_to_polygons(mask: np.ndarray) -> list[Polygon]:
    """Outlines of a mask as COCO polygons, which decode to the mask again.

    The outline runs through the middles of the pixel edges between inside and outside: smooth
    on diagonals and, unlike a contour through pixel centres, without losing half a pixel all
    round (a tenth of a small object's area). COCO decodes a list of polygons to their union, so
    a hole cannot be one of them: a component with a hole is cut in two through the hole.

    Args:
        mask: (H, W) bool.

    Returns:
        One polygon for each 4-connected, hole-free part, in raster order.
    """
    polygons: list[Polygon] = []
    labels, count = label_components(mask)
    for label in range(1, count + 1):
        polygons.extend(_component_polygons(labels == label))
    return polygons


def _component_polygons(component: np.ndarray) -> list[Polygon]:
    loops = _trace_loops(component)
    holes = [loop for loop in loops if _signed_area(loop) < 0]
    if not holes:
        return [_through_edge_middles(loop) for loop in loops]
    xs = [x for x, _ in holes[0]]
    cut = (min(xs) + max(xs) + 1) // 2  # strictly inside the hole or on its right border
    left, right = component.copy(), component.copy()
    left[:, cut:] = False
    right[:, :cut] = False
    return mask_to_polygons(left) + mask_to_polygons(right)


def _trace_loops(component: np.ndarray) -> list[list[tuple[int, int]]]:
    """Follow pixel edges with the inside on the right (y points down): loops of corner points."""
    box_x, box_y, width, height = mask_to_box(component)
    inside = component[box_y : box_y + height, box_x : box_x + width].astype(np.int8)
    down = np.diff(np.pad(inside, ((1, 1), (0, 0))), axis=0)  # [y, x]: the edge above pixel (x, y)
    across = np.diff(np.pad(inside, ((0, 0), (1, 1))), axis=1)  # [y, x]: the edge left of it
    steps: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for array, value, from_x, from_y, step in (
        (down, 1, 0, 0, (1, 0)),  # a top edge, walked to the right
        (down, -1, 1, 0, (-1, 0)),  # a bottom edge, walked to the left
        (across, 1, 0, 1, (0, -1)),  # a left edge, walked up
        (across, -1, 0, 0, (0, 1)),  # a right edge, walked down
    ):
        ys, xs = np.nonzero(array == value)
        for y, x in zip(ys.tolist(), xs.tolist(), strict=True):
            steps.setdefault((box_x + x + from_x, box_y + y + from_y), []).append(step)
    loops = []
    while steps:
        start = min(steps, key=lambda p: (p[1], p[0]))
        corner, heading, loop = start, (1, 0), []
        while True:
            choices = steps[corner]
            # Where two pixels touch by a corner, turn right: 4-connected parts stay apart.
            turn_right = (-heading[1], heading[0])
            heading = turn_right if turn_right in choices else choices[0]
            choices.remove(heading)
            if not choices:
                del steps[corner]
            loop.append(corner)
            corner = (corner[0] + heading[0], corner[1] + heading[1])
            if corner == start:
                break
        loops.append(loop)
    return loops


def _signed_area(loop: list[tuple[int, int]]) -> float:
    """Positive for an outer loop, negative for a hole."""
    following = loop[1:] + loop[:1]
    return sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(loop, following, strict=True)) / 2


def _through_edge_middles(loop: list[tuple[int, int]]) -> Polygon:
    points = np.asarray(loop, np.float64)
    middles = (points + np.roll(points, -1, axis=0)) / 2
    before = middles - np.roll(middles, 1, axis=0)
    after = np.roll(middles, -1, axis=0) - middles
    bends = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return middles[bends].ravel().tolist()
