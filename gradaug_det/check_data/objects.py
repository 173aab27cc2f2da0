"""Checks of numbers: boxes, their format, and what is left to learn from.

All arrays have a row for each annotation; boxes are x, y, width, height in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradaug_det.check_data.agreement import FEW
from gradaug_det.check_data.kinds import Findings

EDGE = 1.0  # pixels that a box or a polygon may reach over the image's edge: COCO's own do
_MASK_PIXELS, _MASK_SHARE = 2.0, 0.05  # how far a side of the box may be from the mask's
_FITS, _FITS_NOT = 0.95, 0.8  # shares of the boxes that agree with a format, and with COCO's
_FAR = 1.25  # of the image's side
_CORNER, _CORNER_BOXES, _CORNER_IMAGES = 0.6, 8, 4  # see _check_scale
_far_numbers = np.errstate(over="ignore", invalid="ignore")  # a file may hold 1e308


@dataclass
class Objects:
    """The annotations in arrays; NaN or -1 is what the file does not have."""

    boxes: np.ndarray  # (n, 4) x, y, width, height
    size: np.ndarray  # (n, 2) the image's width, height
    row: np.ndarray  # (n,) the image
    category: np.ndarray  # (n,) position in the file's categories
    area: np.ndarray  # (n,) square pixels
    crowd: np.ndarray  # (n, 2) whether Detectron2 and MMDetection take it for a crowd
    ignore: np.ndarray  # (n,) whether it is to be ignored
    extents: np.ndarray  # (n, 4) the mask's x0, y0, x1, y1
    maskless: np.ndarray  # (n, 2) whether Detectron2 and MMDetection leave it out for its mask
    example: Callable[[int], dict[str, Any]]  # describes an annotation


@_far_numbers
def check_boxes(objects: Objects, given: np.ndarray, findings: Findings) -> None:
    """Looks at each box by itself and against its image; ``given`` says which are boxes at all."""
    boxes, size = objects.boxes, objects.size
    finite = np.isfinite(boxes).all(axis=1)
    extent, end = boxes[:, 2:], boxes[:, :2] + boxes[:, 2:]
    negative = finite & (extent < 0).any(axis=1)
    empty = finite & ~negative & (extent == 0).any(axis=1)
    proper = finite & ~negative & ~empty
    outside = proper & ((boxes[:, :2] >= size) | (end <= 0)).any(axis=1)
    over = (boxes[:, :2] < -EDGE) | (end > size + EDGE)  # false where the size is not known
    for kind, found in (
        ("box-not-finite", ~finite & given),
        ("box-negative-size", negative),
        ("box-zero-area", empty),
        ("box-below-one-pixel", proper & (extent < 1).any(axis=1)),
        ("box-outside-image", outside),
        ("box-partly-outside", proper & ~outside & over.any(axis=1)),
    ):
        findings.add_all(kind, np.flatnonzero(found).tolist(), objects.example)


def check_extents(objects: Objects, findings: Findings) -> None:
    """Compares masks with their images and boxes."""
    extents, size = objects.extents, objects.size

    def example(index: int) -> dict[str, Any]:
        return objects.example(index) | {"x0, y0, x1, y1": extents[index].tolist()}

    over = (extents[:, :2] < -EDGE) | (extents[:, 2:] > size + EDGE)
    findings.add_all("polygon-outside", np.flatnonzero(over.any(axis=1)).tolist(), example)
    differs = (objects.boxes[:, 2:] > 0).all(axis=1) & ~_fits_mask(objects.boxes, objects)
    findings.add_all("box-differs-from-mask", np.flatnonzero(differs).tolist(), example)


@_far_numbers
def _fits_mask(boxes: np.ndarray, objects: Objects) -> np.ndarray:
    """Returns whether each side is where the mask's is; true where there is no mask."""
    extents = objects.extents
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    # What lies outside the image is said elsewhere: compare what is inside.
    limit = np.tile(objects.size, 2)
    distance = np.abs(np.clip(corners, 0, limit) - np.clip(extents, 0, limit))
    sides = np.tile(extents[:, 2:] - extents[:, :2], 2)
    return ~(distance > np.maximum(_MASK_PIXELS, _MASK_SHARE * sides)).any(axis=1)


def check_unit(objects: Objects, points: np.ndarray, findings: Findings) -> None:
    """Looks whether boxes, masks and ``points``, labelled keypoints' (m, 2) x, y, are in pixels."""
    large = (objects.size > 8).all(axis=1)
    for key, values in (("bbox", objects.boxes), ("segmentation", objects.extents)):
        known = large & np.isfinite(values).all(axis=1) & (values[:, 2:] > 0).all(axis=1)
        small = known & (values >= -0.01).all(axis=1) & (values <= 1.01).all(axis=1)
        if small.sum() * 2 > known.sum():
            first = objects.example(int(np.argmax(small)))
            findings.add("not-in-pixels", key=key, share=f"{small.sum()} of {known.sum()}", **first)
    if len(points) >= FEW and large.any() and (points >= 0).all() and (points <= 1).all():
        findings.add("not-in-pixels", key="keypoints", share=f"{len(points)} of {len(points)}")


@_far_numbers
def check_format(objects: Objects, findings: Findings) -> None:
    """Looks whether nearly all boxes make sense in another format, and many do not in COCO's."""
    usable = np.isfinite(objects.boxes).all(axis=1) & np.isfinite(objects.size).all(axis=1)
    usable &= ~objects.crowd.any(axis=1)
    if usable.sum() < FEW:
        return
    x, y, a, b = objects.boxes.T
    formats = {
        "x0, y0, x1, y1": (x, y, a - x, b - y),
        "centre x, centre y, width, height": (x - a / 2, y - b / 2, a, b),
        "y, x, height, width": (y, x, b, a),
        "y0, x0, y1, x1": (y, x, b - y, a - x),
        "x, y, width, height of an image of half the size": (2 * x, 2 * y, 2 * a, 2 * b),
    }
    reach = (objects.boxes[usable, :2] + objects.boxes[usable, 2:]).max()
    for name, whole in (("percent", 100), ("thousandths", 1000)):
        if whole / 2 < reach <= whole * 1.01:
            scaled = objects.boxes * np.tile(objects.size, 2) / whole
            formats[f"x, y, width, height in {name}"] = tuple(scaled.T)
    # Annotations of boxes alone often have the box's own area: a proof, where it is the other's.
    equal = _share_of_sense(objects.boxes, objects, usable)[1]
    if equal >= _FITS:  # made of the boxes, the areas say nothing about them
        objects = replace(objects, area=np.full(len(objects.area), np.nan))
    fits, equal = _share_of_sense(objects.boxes, objects, usable)
    for name, columns in formats.items():
        other_fits, other_equal = _share_of_sense(np.stack(columns, axis=1), objects, usable)
        proved = other_equal >= _FITS and equal <= 1 - _FITS_NOT
        if other_fits >= _FITS and (fits <= _FITS_NOT or proved):
            first = objects.example(int(np.argmax(usable)))
            findings.add("box-in-another-format", looks_like=name, boxes=int(usable.sum()), **first)
            return
    _check_scale(objects, usable, findings)


def _share_of_sense(boxes: np.ndarray, objects: Objects, usable: np.ndarray) -> tuple[float, float]:
    """The shares of boxes that agree with borders, masks and areas, and whose area is their own."""
    inside = (boxes[:, :2] >= -EDGE).all(axis=1) & (boxes[:, 2:] > 0).all(axis=1)
    inside &= (boxes[:, :2] + boxes[:, 2:] <= objects.size + EDGE).all(axis=1)
    area = boxes[:, 2] * boxes[:, 3]
    small_enough = ~(objects.area > 1.1 * area + 4)  # a mask may fill its box, and no more
    equal = (np.abs(objects.area - area) <= 0.01 * area) & (area > 4)
    equal &= np.isnan(objects.extents).any(axis=1)
    fits = inside & small_enough & _fits_mask(boxes, objects)
    return fits[usable].mean(), equal[usable].mean()


def _check_scale(objects: Objects, usable: np.ndarray, findings: Findings) -> None:
    """Finds boxes of larger or smaller images, masks too: they leave the image, or one corner
    only."""
    near = (objects.boxes[:, :2] / objects.size)[usable]
    far = ((objects.boxes[:, :2] + objects.boxes[:, 2:]) / objects.size)[usable]
    shown = {"boxes": len(far), "reach": far.max(axis=0).tolist()}
    # A few reach far over the edge where whole objects were annotated that the image cuts off.
    if (far.max(axis=1) > _FAR).mean() > 1 - _FITS_NOT and (near >= -0.01).all():
        looks_like = "x, y, width, height of a larger image"
        findings.add("box-in-another-format", looks_like=looks_like, **shown)
    # What always lies at the same place reaches less far to the corner.
    in_corner = (far <= _CORNER).all() and (near.min(axis=0) <= far.max(axis=0) / 4).all()
    enough = len(far) >= _CORNER_BOXES and len(np.unique(objects.row[usable])) >= _CORNER_IMAGES
    if in_corner and enough:
        findings.add("boxes-in-corner", **shown)


@_far_numbers
def check_kept_objects(
    objects: Objects, names: Sequence[str], frameworks: Collection[str], findings: Findings
) -> None:
    """Counts what each framework learns from, by its own rules; ``names`` are the categories'."""
    if not len(objects.boxes):
        return
    boxes, size = objects.boxes, np.where(np.isnan(objects.size), np.inf, objects.size)
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    # Detectron2 takes a box of negative sides for the one on the other side of its corner.
    turned = np.clip(np.maximum(start, end), 0, size) - np.clip(np.minimum(start, end), 0, size)
    inside = np.clip(end, None, size) - np.clip(start, 0, None)
    of_both = {
        "image_id is of no image": objects.row < 0,
        "category_id is of no category": objects.category < 0,
    }
    crowd, maskless = objects.crowd.T, objects.maskless.T
    lost = {
        "Detectron2": of_both
        | {
            "iscrowd is not 0, as it is for ordinary objects": crowd[0],
            "bbox is empty or outside the image": ~(turned > 1e-5).all(axis=1),
            "no mask can be drawn": maskless[0],
        },
        "MMDetection": of_both
        | {
            "iscrowd is not 0, as it is for ordinary objects": crowd[1],
            "ignore is set": objects.ignore,
            "area is not positive": objects.area <= 0,
            "bbox is outside the image": ~(inside > 0).all(axis=1),
            "bbox is below 1 pixel": ~(boxes[:, 2:] >= 1).all(axis=1),
            "no mask can be drawn": maskless[1],
        },
    }
    for framework in frameworks:
        causes = lost[framework]
        gone = np.logical_or.reduce(list(causes.values()))
        # One count of each class: LVIS has 1,203 of them, and a million objects.
        counts, kept = (
            np.bincount(objects.category[which & (objects.category >= 0)], minlength=len(names))
            for which in (np.ones_like(gone), ~gone)
        )
        for index, name, count, left in (
            (-1, None, len(gone), int((~gone).sum())),
            *zip(range(len(names)), names, counts.tolist(), kept.tolist(), strict=True),
        ):
            nothing = name is None and left == 0
            if not nothing and (count < FEW or 2 * left >= count):
                continue
            chosen = objects.category == index if name is not None else np.ones_like(gone)
            cause = max(causes, key=lambda one: (causes[one] & chosen).sum())
            findings.add(
                "no-objects-left" if nothing else "most-objects-lost",
                framework=framework,
                name=name,
                kept=left,
                objects=count,
                cause=f"{(causes[cause] & chosen).sum()} x {cause}",
            )
            if nothing:
                break  # of every class, then
