"""The part of a check that needs the annotation file alone.

One pass over the annotations looks at types and ids and gathers numbers; NumPy compares them.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from gradaug_det.datasets.check_kinds import Findings
from gradaug_det.errors import DataError

EDGE = 1.0  # pixels that a box or a polygon may reach over the image's edge: COCO's own do
_MASK_PIXELS, _MASK_SHARE = 2.0, 0.05  # how far a side of the box may be from the mask's
_LARGEST_COORDINATE = 1e6  # pixels; pycocotools dies at 1e8, and needs memory in proportion
_LARGEST_MASK = 2**30  # pixels; the frameworks would need as many bytes for one object
_CHUNK = 20_000  # annotations whose polygons are in one array
# Each character has 6 bits from "0" on; the sixth says that the number goes on in the next one.
# pycocotools reads past the end of a string that does not end a number, so it must not see it.
_RUN_LENGTHS = re.compile(r"(?:[P-o]{0,6}[0-O])+")
_NAN = (math.nan,) * 4


def read_document(path: Path) -> dict[str, Any]:
    """The parsed annotation file, with ``images``, ``annotations`` and ``categories`` as lists.

    Raises:
        DataError: it is missing, no JSON, no object, or lacks images or categories.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"the annotation file {path} is missing") from None
    except OSError as error:
        raise DataError(f"the annotation file {path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise DataError(f"{path} is no COCO file: its lists are nested too deeply") from None
    except ValueError as error:  # not UTF-8, not JSON, or a number of thousands of digits
        raise DataError(f"{path} is not valid JSON ({error}); was its writing cut off?") from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path} holds a JSON {type(content).__name__}, a COCO annotation file is an object; "
            "is it a file of predictions?"
        )
    content.setdefault("annotations", [])
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            problem = (
                f"a {type(content[key]).__name__}, not a list" if key in content else "missing"
            )
            raise DataError(f"{path}: {key!r} is {problem}; is it a COCO annotation file?")
    return content


class Images:
    """The file's images with a usable id.

    Attributes:
        records: their objects.
        row: id -> position in ``records``; of equal ids the last, as pycocotools has it.
        sizes: (n, 2) width, height in pixels; NaN where the file has none.
    """

    def __init__(self, entries: list, findings: Findings) -> None:
        if not entries:
            findings.add("empty-list", key="images")
        self.records: list[dict[str, Any]] = []
        self.row: dict[Any, int] = {}
        names: Counter[str] = Counter()
        sizes = []
        for position, image in enumerate(entries):
            where = {"list": "images", "position": position}
            if not _is_entry(image, ("id", "file_name", "width", "height"), where, findings):
                continue
            where = {"image_id": image.get("id"), "file_name": image.get("file_name")}
            if "id" in image and not _usable_id(image["id"], where, findings):
                continue
            if not isinstance(image.get("file_name", ""), str):
                findings.add("wrong-type", key="file_name", **where)
            elif "file_name" in image:
                names[image["file_name"]] += 1
                if names[image["file_name"]] > 1:
                    findings.add("duplicate-file-name", **where)
            size = [_side(image, key, where, findings) for key in ("width", "height")]
            if "id" not in image:
                continue
            if image["id"] in self.row:
                findings.add("duplicate-image-id", **where)
            self.row[image["id"]] = len(self.records)
            self.records.append(image)
            sizes.append(size)
        self.sizes = np.array(sizes, np.float64).reshape(-1, 2)


def check_categories(
    entries: list,
    num_classes: int | None,
    class_names: Sequence[str] | None,
    findings: Findings,
) -> dict[Any, str]:
    """Names by id of the categories with a usable id."""
    if not entries:
        findings.add("empty-list", key="categories")
    names: dict[Any, Any] = {}
    for position, category in enumerate(entries):
        where = {"list": "categories", "position": position}
        if not _is_entry(category, ("id", "name"), where, findings) or "id" not in category:
            continue
        where = {"category_id": category["id"], "name": category.get("name")}
        if not _usable_id(category["id"], where, findings):
            continue
        if not isinstance(category.get("name", ""), str):
            findings.add("wrong-type", key="name", **where)
        if category["id"] in names:
            findings.add("duplicate-category-id", **where)
        elif isinstance(category.get("name"), str) and category["name"] in names.values():
            findings.add("duplicate-category-name", **where)
        names[category["id"]] = category.get("name")
    ids = list(names)
    if all(isinstance(i, int) for i in ids):
        if ids != sorted(ids):
            findings.add("categories-not-sorted", ids=ids)
        if sorted(ids) != list(range(1, len(ids) + 1)):
            findings.add("non-contiguous-categories", ids=ids)
    if num_classes is not None and len(names) != num_classes:
        kind = "too-many-categories" if len(names) > num_classes else "too-few-categories"
        findings.add(kind, categories=len(names), num_classes=num_classes)
    known = {name for name in names.values() if isinstance(name, str)}
    for name in class_names or ():
        if name not in known:
            findings.add("class-not-in-file", name=name)
    return names


def check_annotations(
    entries: list, images: Images, categories: dict[Any, str], masks: bool, findings: Findings
) -> None:
    """Looks at every annotation; findings go to ``findings``."""
    if not entries:
        findings.add("no-annotations")
    seen: set = set()
    instances: Counter = Counter()
    kept: list[dict[str, Any]] = []
    rows: list[int] = []
    boxes: list[Any] = []
    with_objects: set[int] = set()
    for position, annotation in enumerate(entries):
        required = ("id", "image_id", "category_id", "bbox")
        where = {"list": "annotations", "position": position}
        if not _is_entry(annotation, required, where, findings):
            continue
        row, category = _check_ids(annotation, images, categories, seen, findings)
        _check_flags(annotation, images, row, findings)
        box = annotation.get("bbox", _NAN)
        if box is not _NAN and not _is_numbers(box, 4):
            findings.add("box-malformed", **_place(annotation, images, row), bbox=box)
            box = _NAN
        if category is not None:
            instances[category] += 1
        with_objects.add(row)
        kept.append(annotation)
        rows.append(row)
        boxes.append(box)

    def example(index: int) -> dict[str, Any]:
        place = _place(kept[index], images, rows[index])
        size = images.sizes[rows[index]].tolist() if rows[index] >= 0 else None
        return place | {"bbox": kept[index].get("bbox"), "width, height": size}

    size = np.full((len(kept), 2), math.nan)
    row_array = np.array(rows, np.intp)
    size[row_array >= 0] = images.sizes[row_array[row_array >= 0]]
    numbers = np.array([_floats(box) for box in boxes], np.float64).reshape(-1, 4)
    _check_boxes(numbers, [box is not _NAN for box in boxes], size, example, findings)
    if masks:
        _check_masks(kept, images, rows, numbers, size, findings)
    if entries:
        findings.add_all(
            "category-without-instances",
            (i for i in categories if not instances[i]),
            lambda i: {"category_id": i, "name": categories[i]},
        )
        findings.add_all(
            "image-without-annotations",
            (row for row in images.row.values() if row not in with_objects),
            lambda row: {
                "image_id": images.records[row]["id"],
                "file_name": images.records[row].get("file_name"),
            },
        )


def _check_ids(
    annotation: dict, images: Images, categories: dict, seen: set, findings: Findings
) -> tuple[int, Any]:
    """The image's row or -1, and the category's id or None."""
    row, category = -1, None
    if "image_id" in annotation and _usable_id(annotation["image_id"], annotation, findings):
        row = images.row.get(annotation["image_id"], -1)
        if row < 0:
            findings.add("unknown-image", **_place(annotation, images, row))
    if "id" in annotation and _usable_id(annotation["id"], annotation, findings):
        if annotation["id"] in seen:
            findings.add("duplicate-annotation-id", **_place(annotation, images, row))
        seen.add(annotation["id"])
        if annotation["id"] == 0:
            findings.add("annotation-id-zero", **_place(annotation, images, row))
    if "category_id" in annotation and _usable_id(annotation["category_id"], annotation, findings):
        category = annotation["category_id"]
        if category not in categories:
            place = _place(annotation, images, row)
            findings.add("unknown-category", **place, category_id=category)
            category = None
    return row, category


def _check_flags(annotation: dict, images: Images, row: int, findings: Findings) -> None:
    area, crowd = annotation.get("area"), annotation.get("iscrowd", 0)
    if not _is_number(area) or not math.isfinite(_float(area)):
        findings.add("area-missing", **_place(annotation, images, row), area=area)
    elif area <= 0:
        findings.add("area-not-positive", **_place(annotation, images, row), area=area)
    if not isinstance(crowd, int | float) or crowd not in (0, 1):
        findings.add("iscrowd-invalid", **_place(annotation, images, row), iscrowd=crowd)
    if annotation.get("ignore", 0) != 0:
        findings.add("ignore-set", **_place(annotation, images, row), ignore=annotation["ignore"])


def _check_boxes(
    boxes: np.ndarray,
    given: list[bool],
    size: np.ndarray,
    example: Callable[[int], dict[str, Any]],
    findings: Findings,
) -> None:
    """Boxes (n, 4) x, y, width, height against image sizes (n, 2) width, height; all in pixels."""
    finite = np.isfinite(boxes).all(axis=1)
    extent = boxes[:, 2:]
    negative = finite & (extent < 0).any(axis=1)
    empty = finite & ~negative & (extent == 0).any(axis=1)
    proper = finite & ~negative & ~empty
    thin = proper & (extent < 1).any(axis=1)
    with np.errstate(over="ignore", invalid="ignore"):
        end = boxes[:, :2] + extent
    outside = proper & ((boxes[:, :2] >= size) | (end <= 0)).any(axis=1)
    over = (boxes[:, :2] < -EDGE) | (end > size + EDGE)  # false where the size is not known
    partly = proper & ~outside & over.any(axis=1)
    for kind, found in (
        ("box-not-finite", ~finite & np.array(given, bool)),
        ("box-negative-size", negative),
        ("box-zero-area", empty),
        ("box-below-one-pixel", thin),
        ("box-outside-image", outside),
        ("box-partly-outside", partly),
    ):
        findings.add_all(kind, np.flatnonzero(found).tolist(), example)


def _check_masks(
    annotations: list[dict],
    images: Images,
    rows: list[int],
    boxes: np.ndarray,
    size: np.ndarray,
    findings: Findings,
) -> None:
    """Segmentations, and whether the boxes are theirs."""
    segmentations = [annotation.get("segmentation") for annotation in annotations]
    absent = [index for index, value in enumerate(segmentations) if not value]

    def place(index: int) -> dict[str, Any]:
        return _place(annotations[index], images, rows[index])

    if absent and len(absent) == len(annotations):
        findings.add("no-segmentations")
        return
    findings.add_all("segmentation-missing", absent, place)

    extents = np.full((len(annotations), 4), math.nan)  # x0, y0, x1, y1
    for start in range(0, len(annotations), _CHUNK):
        polygons: dict[int, list[list]] = {}
        for index in range(start, min(start + _CHUNK, len(annotations))):
            value = segmentations[index]
            crowd = annotations[index].get("iscrowd") == 1
            if not value:
                continue
            if isinstance(value, dict):
                extents[index] = _check_run_lengths(
                    value, size[index], crowd, place(index), findings
                )
            elif isinstance(value, list) and all(isinstance(part, list) for part in value):
                if crowd:
                    findings.add("iscrowd-with-polygon", **place(index))
                polygons[index] = value
            else:
                findings.add("segmentation-malformed", **place(index), segmentation=value)
        _check_polygons(polygons, extents, place, findings)

    over = (extents[:, :2] < -EDGE) | (extents[:, 2:] > size + EDGE)
    findings.add_all(
        "polygon-outside",
        np.flatnonzero(over.any(axis=1)).tolist(),
        lambda i: place(i) | {"x0, y0, x1, y1": extents[i].tolist()},
    )
    with np.errstate(over="ignore", invalid="ignore"):
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        # What lies outside the image has been said: compare what is inside.
        limit = np.concatenate([size, size], axis=1)
        distance = np.abs(np.clip(corners, 0, limit) - np.clip(extents, 0, limit))
        sides = extents[:, 2:] - extents[:, :2]
        allowed = np.maximum(_MASK_PIXELS, _MASK_SHARE * np.concatenate([sides, sides], axis=1))
        differs = (boxes[:, 2:] > 0).all(axis=1) & (distance > allowed).any(axis=1)
    findings.add_all(
        "box-differs-from-mask",
        np.flatnonzero(differs).tolist(),
        lambda i: place(i) | {"bbox": boxes[i].tolist(), "x0, y0, x1, y1": extents[i].tolist()},
    )


def _check_polygons(
    polygons: dict[int, list[list]],
    extents: np.ndarray,
    place: Callable[[int], dict[str, Any]],
    findings: Findings,
) -> None:
    """Sets the extents (x0, y0, x1, y1) of the annotations whose polygons are sound."""
    sound: dict[int, list[list]] = {}
    for index, parts in polygons.items():
        long = [part for part in parts if len(part) >= 6 and len(part) % 2 == 0]
        if len(long) < len(parts):
            lengths = [len(part) for part in parts]
            findings.add("polygon-too-short", **place(index), lengths=lengths)
        if long:
            sound[index] = long
    flat = list(chain.from_iterable(chain.from_iterable(sound.values())))
    if not set(map(type, flat)) <= {int, float}:
        for index in list(sound):
            if not all(map(_is_number, chain.from_iterable(sound[index]))):
                findings.add("segmentation-malformed", **place(index), segmentation=sound[index])
                del sound[index]
        flat = list(chain.from_iterable(chain.from_iterable(sound.values())))
    if not sound:
        return
    try:
        points = np.array(flat, np.float64).reshape(-1, 2)
    except OverflowError:  # an integer of hundreds of digits
        points = np.array([_float(number) for number in flat], np.float64).reshape(-1, 2)
    lengths = [sum(map(len, parts)) // 2 for parts in sound.values()]
    starts = np.cumsum([0, *lengths[:-1]])
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
    extents[indices[drawable]] = found[drawable]


def _check_run_lengths(
    value: dict, size: np.ndarray, crowd: bool, place: dict[str, Any], findings: Findings
) -> tuple[float, float, float, float]:
    """The mask's extent x0, y0, x1, y1, or NaN if it cannot be had."""
    from pycocotools import mask as coco_mask  # only with run lengths, as in datasets.masks

    shape, counts = value.get("size"), value.get("counts")
    if not _is_numbers(shape, 2) or not isinstance(counts, list | str):
        findings.add("segmentation-malformed", **place, segmentation=value)
        return _NAN
    if not crowd:
        findings.add("rle-instance", **place)
    width, height = size.tolist()
    if shape != [height, width]:
        if not math.isnan(width) and not math.isnan(height):
            findings.add("rle-wrong-size", **place, size=shape, expected=[height, width])
        return _NAN
    shape = [int(height), int(width)]
    if not _fills(shape, counts):
        findings.add("rle-unreadable", **place, size=shape, counts=counts)
        return _NAN
    rle = {"size": shape, "counts": counts}
    if isinstance(counts, list):
        rle = coco_mask.frPyObjects(rle, *shape)
    if not coco_mask.area(rle):
        findings.add("rle-empty", **place)
        return _NAN
    x, y, box_width, box_height = coco_mask.toBbox(rle).tolist()
    return x, y, x + box_width, y + box_height


def _fills(shape: list[int], counts: list | str) -> bool:
    """Whether run lengths can be read and sum to the pixels of their size.

    pycocotools refuses too many pixels but not too few, and not before it has made an array of
    them all: a file of a kilobyte can ask for many of a gigabyte.
    """
    pixels = shape[0] * shape[1]
    if pixels > _LARGEST_MASK:
        return False
    if isinstance(counts, list):
        whole = all(_is_number(n) and 0 <= n <= pixels and n % 1 == 0 for n in counts)
        return whole and sum(counts) == pixels
    if not _RUN_LENGTHS.fullmatch(counts):
        return False
    lengths = _run_lengths(counts)
    return bool(((lengths >= 0) & (lengths <= pixels)).all()) and int(lengths.sum()) == pixels


def _run_lengths(counts: str) -> np.ndarray:
    """The numbers in a string that `_RUN_LENGTHS` matches, as pycocotools packs them.

    5 bits a character, the lowest first, the last one's highest is the sign; from the fourth
    number on they are differences to the one before the last.
    """
    codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - ord("0")
    ends = np.flatnonzero(codes < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((codes & 31) << (5 * places), starts)
    numbers -= np.where(codes[ends] & 16, 1 << (5 * (ends - starts + 1)), 0)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def _is_entry(
    entry: Any, required: Sequence[str], where: dict[str, Any], findings: Findings
) -> bool:
    """Whether an entry of a list is an object; names the keys that it lacks."""
    if not isinstance(entry, dict):
        findings.add("wrong-type", **where, entry=entry)
        return False
    lacking = [key for key in required if key not in entry]
    if lacking:
        findings.add("missing-key", **where, id=entry.get("id"), lacks=", ".join(lacking))
    return True


def _usable_id(value: Any, entry: dict[str, Any], findings: Findings) -> bool:
    """Whether a value can stand for something; an annotation or the place of another entry."""
    if type(value) is int:
        return True
    usable = isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))
    kind = "id-not-integer" if usable else "wrong-type"
    place = {key: entry[key] for key in ("list", "position", "id", "image_id") if key in entry}
    findings.add(kind, value=value, **place)
    return usable


def _side(image: dict, key: str, where: dict[str, Any], findings: Findings) -> float:
    """Width or height in pixels; NaN if it is missing or wrong."""
    if key not in image:
        return math.nan
    value = image[key]
    if not _is_number(value) or not 0 < value <= _LARGEST_COORDINATE or value % 1:
        findings.add("wrong-type", **where, key=key, value=value)
        return math.nan
    return float(value)


def _place(annotation: dict, images: Images, row: int) -> dict[str, Any]:
    return {
        "image_id": annotation.get("image_id"),
        "annotation_id": annotation.get("id"),
        "file_name": images.records[row].get("file_name") if row >= 0 else None,
    }


def _is_number(value: Any) -> bool:
    return type(value) is int or type(value) is float


def _is_numbers(value: Any, length: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(map(_is_number, value))


def _float(value: float) -> float:
    """A number as a float; infinite if it is an integer too large for that."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _floats(box: Any) -> tuple[float, ...]:
    return tuple(map(_float, box))
