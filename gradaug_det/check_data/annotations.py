"""The part of a check that needs the annotation file alone.

One pass over the annotations looks at types and ids and gathers numbers; NumPy compares them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradaug_det.check_data.keypoints import check_keypoints
from gradaug_det.check_data.kinds import Findings
from gradaug_det.check_data.masks import check_masks, is_number, is_numbers, to_float
from gradaug_det.check_data.objects import (
    Objects,
    check_boxes,
    check_format,
    check_kept_objects,
    check_unit,
)

_LARGEST_SIDE = 1e6  # pixels
_NAN = (math.nan,) * 4


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
        _check_mixed("images", list(self.row), findings)
        self.sizes = np.array(sizes, np.float64).reshape(-1, 2)


def check_categories(
    entries: list,
    num_classes: int | None,
    findings: Findings,
) -> dict[Any, dict[str, Any]]:
    """The categories with a usable id, by id, in the file's order."""
    if not entries:
        findings.add("empty-list", key="categories")
    categories: dict[Any, dict[str, Any]] = {}
    names: dict[Any, None] = {}
    for position, category in enumerate(entries):
        where = {"list": "categories", "position": position}
        if not _is_entry(category, ("id", "name"), where, findings) or "id" not in category:
            continue
        name = category.get("name")
        where = {"category_id": category["id"], "name": name}
        if not _usable_id(category["id"], where, findings):
            continue
        if category["id"] in categories:
            findings.add("duplicate-category-id", **where)
        elif isinstance(name, str) and name in names:
            findings.add("duplicate-category-name", **where)
        if isinstance(name, str):
            names[name] = None
        elif "name" in category:
            findings.add("wrong-type", key="name", **where)
        categories[category["id"]] = category
    ids = list(categories)
    _check_mixed("categories", ids, findings)
    if all(isinstance(i, int) for i in ids):
        if ids != sorted(ids):
            findings.add("categories-not-sorted", ids=ids)
        if sorted(ids) != list(range(1, len(ids) + 1)):
            findings.add("non-contiguous-categories", ids=ids)
    if num_classes is not None and len(categories) != num_classes:
        kind = "too-many-categories" if len(categories) > num_classes else "too-few-categories"
        findings.add(kind, categories=len(categories), num_classes=num_classes)
    return categories


def _check_mixed(key: str, ids: Sequence[Any], findings: Findings) -> None:
    texts = [value for value in ids if isinstance(value, str)]
    if texts and len(texts) < len(ids):
        findings.add("ids-mixed", list=key, text=texts[0], texts=len(texts), ids=len(ids))


def _spelling(value: Any) -> str:
    """What different spellings of a name or an id have in common: " Bolt", "bolt"; "07", 7.0."""
    text = "".join(str(value).split()).casefold()
    try:
        return str(int(float(text)))
    except (ValueError, OverflowError):
        return text


def check_annotations(
    entries: list,
    images: Images,
    categories: dict[Any, dict[str, Any]],
    findings: Findings,
    *,
    masks: bool,
    keypoints: int | bool | None,
    frameworks: Collection[str],
    max_detections: int,
) -> list[int]:
    """Looks at every annotation; findings go to ``findings``.

    Returns how many each category has, in the categories' order.

    Args:
        entries: the file's list.
        images, categories: what annotations belong to.
        findings: where they go.
        masks: look at segmentations.
        keypoints: how many a detector wants; None: not known; False: do not look at them.
        frameworks: those whose objects are counted.
        max_detections: what an evaluator counts of an image.
    """
    if not entries:
        findings.add("no-annotations")
        return [0] * len(categories)
    seen: set = set()
    lookup = _Lookup(images, categories)
    kept: list[dict[str, Any]] = []
    rows: list[int] = []
    columns: list[int] = []
    boxes: list[Any] = []
    flags: list[tuple] = []
    for position, annotation in enumerate(entries):
        required = ("id", "image_id", "category_id", "bbox")
        where = {"list": "annotations", "position": position}
        if not _is_entry(annotation, required, where, findings):
            continue
        row, column = _check_ids(annotation, lookup, seen, findings)
        flags.append(_check_flags(annotation, images, row, findings))
        box = annotation.get("bbox", _NAN)
        if box is not _NAN and not is_numbers(box, 4):
            findings.add("box-malformed", **_place(annotation, images, row), bbox=box)
            box = _NAN
        kept.append(annotation)
        rows.append(row)
        columns.append(column)
        boxes.append(box)

    def place(index: int) -> dict[str, Any]:
        return _place(kept[index], images, rows[index])

    def example(index: int) -> dict[str, Any]:
        size = images.sizes[rows[index]].tolist() if rows[index] >= 0 else None
        return place(index) | {"bbox": kept[index].get("bbox"), "width, height": size}

    count = len(kept)
    row = np.array(rows, np.intp)
    size = np.full((count, 2), math.nan)
    size[row >= 0] = images.sizes[row[row >= 0]]
    area, crowd, crowd_too, ignore = np.array(flags, np.float64).reshape(-1, 4).T
    objects = Objects(
        boxes=np.array([_floats(box) for box in boxes], np.float64).reshape(-1, 4),
        size=size,
        row=row,
        category=np.array(columns, np.intp),
        area=area,
        crowd=np.stack([crowd, crowd_too], axis=1) > 0,
        ignore=ignore > 0,
        extents=np.full((count, 4), math.nan),
        maskless=np.zeros((count, 2), bool),
        example=example,
    )
    check_boxes(objects, np.array([box is not _NAN for box in boxes], bool), findings)
    if masks:
        check_masks(kept, objects, place, findings)
    points = np.empty((0, 2))
    if keypoints is not False:
        listed = list(categories.values())
        names = [listed[column].get("keypoints") if column >= 0 else None for column in columns]
        points = check_keypoints(kept, names, size, keypoints, place, findings)
    check_unit(objects, points, findings)
    if "not-in-pixels" not in findings:
        check_format(objects, findings)
    names = [str(category.get("name")) for category in categories.values()]
    check_kept_objects(objects, names, frameworks, findings)
    return _check_counts(objects, images, categories, max_detections, findings)


def _check_counts(
    objects: Objects,
    images: Images,
    categories: dict[Any, dict[str, Any]],
    max_detections: int,
    findings: Findings,
) -> list[int]:
    """What has no object, or too many; gives how many each category has."""
    known = objects.category[objects.category >= 0]
    instances = np.bincount(known, minlength=len(categories)).tolist()
    findings.add_all(
        "category-without-instances",
        (key for key, count in zip(categories, instances, strict=True) if not count),
        lambda key: {"category_id": key, "name": categories[key].get("name")},
    )

    def image(row: int) -> dict[str, Any]:
        record = images.records[row]
        return {"image_id": record["id"], "file_name": record.get("file_name")}

    of_image = np.bincount(objects.row[objects.row >= 0], minlength=len(images.records))
    findings.add_all(
        "image-without-annotations", (r for r in images.row.values() if not of_image[r]), image
    )
    scored = np.bincount(objects.row[(objects.row >= 0) & ~objects.crowd[:, 0]])
    findings.add_all(
        "many-objects",
        np.flatnonzero(scored > max_detections).tolist(),
        lambda row: image(row) | {"objects": int(scored[row]), "counted": max_detections},
    )
    return instances


class _Lookup:
    """What an annotation's ids stand for, and ids that are meant but spelled otherwise."""

    def __init__(self, images: Images, categories: dict[Any, dict[str, Any]]) -> None:
        self.images = images
        self._names = {str(category.get("name")): key for key, category in categories.items()}
        self.columns = {key: column for column, key in enumerate(categories)}
        self._alike: dict[str, dict[str, Any]] = {}
        self._files: dict[str, Any] = {}

    def meant(self, key: str, value: Any) -> Any:
        """The id that an ``image_id`` or ``category_id`` is another spelling of; None: none."""
        if key not in self._alike:
            known = self.images.row if key == "image_id" else self.columns
            self._alike[key] = {_spelling(one): one for one in known}
            if key == "image_id":  # some tools write the file's name, with or without extension
                for record in self.images.records:
                    name = str(record.get("file_name"))
                    self._files |= {name: record["id"], Path(name).stem: record["id"]}
        alike = self._alike[key]
        found = alike.get(_spelling(value))
        if found is None and key == "image_id" and isinstance(value, str):
            stem = Path(value).stem
            found = self._files.get(value, self._files.get(stem, alike.get(_spelling(stem))))
        elif found is None and key == "category_id":
            found = self._names.get(str(value))
        return found


def _check_ids(annotation: dict, lookup: _Lookup, seen: set, findings: Findings) -> tuple[int, int]:
    """The image's row and the category's position; -1: there is none."""
    row, column, images = -1, -1, lookup.images
    if "image_id" in annotation and _usable_id(annotation["image_id"], annotation, findings):
        value = annotation["image_id"]
        row = images.row.get(value, -1)
        if row < 0:
            meant = lookup.meant("image_id", value)
            kind = "unknown-image" if meant is None else "image-id-differs"
            findings.add(kind, **_place(annotation, images, row), images_id=meant)
    if "id" in annotation and _usable_id(annotation["id"], annotation, findings):
        value = annotation["id"]
        if value in seen:
            findings.add("duplicate-annotation-id", **_place(annotation, images, row))
        seen.add(value)
        if value == 0:
            findings.add("annotation-id-zero", **_place(annotation, images, row))
        elif isinstance(value, str) and not _is_numeral(value):
            findings.add("annotation-id-text", **_place(annotation, images, row))
    if "category_id" in annotation and _usable_id(annotation["category_id"], annotation, findings):
        value = annotation["category_id"]
        column = lookup.columns.get(value, -1)
        if column < 0:
            meant = lookup.meant("category_id", value)
            place = _place(annotation, images, row) | {"category_id": value}
            findings.add("unknown-category", **place, categorys_id=meant)
    return row, column


def _is_numeral(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _check_flags(
    annotation: dict, images: Images, row: int, findings: Findings
) -> tuple[float, bool, bool, bool]:
    """The area, whether Detectron2 and MMDetection take it for a crowd, whether it is ignored."""
    area, crowd = annotation.get("area"), annotation.get("iscrowd", 0)
    ignore = annotation.get("ignore", 0)
    if not is_number(area) or not math.isfinite(to_float(area)):
        findings.add("area-missing", **_place(annotation, images, row), area=area)
        area = math.nan
    elif area <= 0:
        findings.add("area-not-positive", **_place(annotation, images, row), area=area)
    if "iscrowd" not in annotation:
        findings.add("iscrowd-missing", **_place(annotation, images, row))
    elif not isinstance(crowd, int | float) or crowd not in (0, 1):
        findings.add("iscrowd-invalid", **_place(annotation, images, row), iscrowd=crowd)
    if ignore != 0:
        findings.add("ignore-set", **_place(annotation, images, row), ignore=ignore)
    return to_float(area), crowd != 0, bool(crowd), bool(ignore)


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
    if not is_number(value) or not 0 < value <= _LARGEST_SIDE or value % 1:
        findings.add("wrong-type", **where, key=key, value=value)
        return math.nan
    return float(value)


def _place(annotation: dict, images: Images, row: int) -> dict[str, Any]:
    return {
        "image_id": annotation.get("image_id"),
        "annotation_id": annotation.get("id"),
        "file_name": images.records[row].get("file_name") if row >= 0 else None,
    }


def _floats(box: Any) -> tuple[float, ...]:
    return tuple(map(to_float, box))
