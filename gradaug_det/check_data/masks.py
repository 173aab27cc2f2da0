"""Checks of segmentations: polygons and run lengths."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np

from gradaug_det.check_data.kinds import Findings
from gradaug_det.check_data.objects import Objects, check_extents

_LARGEST_COORDINATE = 1e6  # pixels; pycocotools dies at 1e8, and needs memory in proportion
_LARGEST_MASK = 2**30  # pixels; the frameworks would need as many bytes for one object
_CHUNK = 20_000  # annotations whose polygons are in one array
# Each character has 6 bits from "0" on; the sixth says that the number goes on in the next one.
# pycocotools reads past the end of a string that does not end a number, so it must not see it.
_RUN_LENGTHS = re.compile(r"(?:[P-o]{0,6}[0-O])+")


def check_masks(
    annotations: Sequence[dict],
    objects: Objects,
    place: Callable[[int], dict[str, Any]],
    findings: Findings,
) -> None:
    """Looks at segmentations and whether the boxes are theirs; sets the objects' extents."""
    segmentations = [annotation.get("segmentation") for annotation in annotations]
    absent = [index for index, value in enumerate(segmentations) if not value]
    if absent and len(absent) == len(annotations):
        findings.add("no-segmentations")
        return
    findings.add_all("segmentation-missing", absent, place)
    for start in range(0, len(annotations), _CHUNK):
        polygons: dict[int, list[list]] = {}
        for index, value in enumerate(segmentations[start : start + _CHUNK], start):
            crowd = annotations[index].get("iscrowd") == 1
            if not value:
                continue
            if isinstance(value, dict):
                _check_run_lengths(value, objects, index, crowd, place(index), findings)
            elif isinstance(value, list) and all(isinstance(part, list) for part in value):
                if crowd:
                    findings.add("iscrowd-with-polygon", **place(index))
                polygons[index] = value
            else:
                findings.add("segmentation-malformed", **place(index), segmentation=value)
                objects.maskless[index, 0] = isinstance(value, str)
        _check_polygons(polygons, objects, place, findings)
    check_extents(objects, findings)


def _check_polygons(
    polygons: dict[int, list[list]],
    objects: Objects,
    place: Callable[[int], dict[str, Any]],
    findings: Findings,
) -> None:
    """Sets the extents (x0, y0, x1, y1) of the annotations whose polygons are sound."""
    sound: dict[int, list] = {}  # index -> the numbers of all its polygons
    for index, parts in polygons.items():
        drawn = [part for part in parts if len(part) >= 6 and len(part) % 2 == 0]
        if len(drawn) < len(parts):
            findings.add("polygon-too-short", **place(index), lengths=[len(p) for p in parts])
        numbers = list(chain.from_iterable(drawn))
        if not drawn:
            objects.maskless[index] = True
        elif not set(map(type, numbers)) <= {int, float}:
            findings.add("segmentation-malformed", **place(index), segmentation=drawn)
        else:
            sound[index] = numbers
    if not sound:
        return
    flat = list(chain.from_iterable(sound.values()))
    try:
        points = np.array(flat, np.float64).reshape(-1, 2)
    except OverflowError:  # an integer of hundreds of digits
        points = np.array([to_float(number) for number in flat], np.float64).reshape(-1, 2)
    starts = np.cumsum([0, *(len(numbers) // 2 for numbers in sound.values())])[:-1]
    indices = np.array(list(sound), np.intp)
    found = np.concatenate(
        [np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)], axis=1
    )
    drawable = (np.abs(found) <= _LARGEST_COORDINATE).all(axis=1)
    findings.add_all(
        "polygon-not-finite",
        np.flatnonzero(~drawable).tolist(),
        lambda i: place(indices[i]) | {"x0, y0, x1, y1": found[i].tolist()},
    )
    objects.extents[indices[drawable]] = found[drawable]


def _check_run_lengths(
    value: dict, objects: Objects, index: int, crowd: bool, place: dict, findings: Findings
) -> None:
    """Sets the extent (x0, y0, x1, y1) of a mask that is sound."""
    from pycocotools import mask as coco_mask  # only with run lengths, which few files have

    shape, counts = value.get("size"), value.get("counts")
    if not is_numbers(shape, 2) or not isinstance(counts, list | str):
        findings.add("segmentation-malformed", **place, segmentation=value)
        objects.maskless[index, 1] = "size" not in value or "counts" not in value
        return
    if not crowd:
        findings.add("rle-instance", **place)
    width, height = objects.size[index].tolist()
    if shape != [height, width]:
        if not math.isnan(width) and not math.isnan(height):
            findings.add("rle-wrong-size", **place, size=shape, expected=[height, width])
        return
    shape = [int(height), int(width)]
    if not _is_whole(shape, counts):
        findings.add("rle-unreadable", **place, size=shape, counts=counts)
        return
    rle = {"size": shape, "counts": counts}
    if isinstance(counts, list):
        rle = coco_mask.frPyObjects(rle, *shape)
    if not coco_mask.area(rle):
        findings.add("rle-empty", **place)
        objects.maskless[index, 0] = True
        return
    x, y, box_width, box_height = coco_mask.toBbox(rle).tolist()
    objects.extents[index] = x, y, x + box_width, y + box_height


def _is_whole(shape: list[int], counts: list | str) -> bool:
    """Returns whether run lengths can be read and sum to the pixels of their size.

    pycocotools refuses too many pixels but not too few, and not before it has made an array of
    them all: a file of a kilobyte can ask for many of a gigabyte.
    """
    pixels = shape[0] * shape[1]
    if pixels > _LARGEST_MASK:
        return False
    if isinstance(counts, list):
        whole = all(is_number(n) and 0 <= n <= pixels and n % 1 == 0 for n in counts)
        return whole and sum(counts) == pixels
    if not _RUN_LENGTHS.fullmatch(counts):
        return False
    lengths = _run_lengths(counts)
    return bool(((lengths >= 0) & (lengths <= pixels)).all()) and int(lengths.sum()) == pixels


def _run_lengths(counts: str) -> np.ndarray:
    """The numbers in a string that `_RUN_LENGTHS` matches, as pycocotools packs them."""
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - ord("0")
    ends = np.flatnonzero(codes < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    # 5 bits a character, the lowest first; the last one's highest is the sign.
    places = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((codes & 31) << (5 * places), starts)
    numbers -= np.where(codes[ends] & 16, 1 << (5 * (ends - starts + 1)), 0)
    # From the fourth number on they are differences to the one before the last.
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def is_number(value: Any) -> bool:
    return type(value) is int or type(value) is float


def is_numbers(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(map(is_number, value))


def to_float(value: float) -> float:
    """A number as a float; infinite if it is an integer too large for that."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
