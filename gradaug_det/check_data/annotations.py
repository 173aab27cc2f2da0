"""Checks of the annotation file alone: one pass over it looks at types and ids and gathers numbers,
which NumPy compares."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
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
_NO_BOX = (math.nan,) * 4
_REQUIRED = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": ("id", "image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


class Images:
    """The file's images with a usable id."""

    def __init__(self, entries: Sequence, findings: Findings) -> None:
        self.records: list[dict[str, Any]] = []
        # id -> position in records; of equal ids the last, as pycocotools has it.
        self.row: dict[Any, int] = {}
        names: set[str] = set()
        sizes = []
        for image in _each_object("images", entries, findings):
            where = {"image_id": image.get("id"), "file_name": image.get("file_name")}
            if "id" in image and not _check_id(image["id"], where, findings):
                continue
            name = image.get("file_name", "")
            if not isinstance(name, str):
                findings.add("wrong-type", key="file_name", **where)
            elif name in names:
                findings.add("duplicate-file-name", **where)
            elif "file_name" in image:
                names.add(name)
            size = [_read_side(image, key, where, findings) for key in ("width", "height")]
            if "id" not in image:
                continue
            if image["id"] in self.row:
                findings.add("duplicate-image-id", **where)
            self.row[image["id"]] = len(self.records)
            self.records.append(image)
            sizes.append(size)
        _check_mixed("images", list(self.row), findings)
        # (n, 2) width, height in pixels; NaN where the file has none.
        self.sizes = np.array(sizes, np.float64).reshape(-1, 2)

    def place(self, row: int) -> dict[str, Any]:
        record = self.records[row]
        return {"image_id": record["id"], "file_name": record.get("file_name")}


def check_categories(
    entries: Sequence, num_classes: int | None, findings: Findings
) -> dict[Any, dict[str, Any]]:
    """Returns the categories with a usable id, by id, in the file's order."""
    categories: dict[Any, dict[str, Any]] = {}
    names: set[str] = set()
    for category in _each_object("categories", entries, findings):
        if "id" not in category:
            continue
        name = category.get("name")
        where = {"category_id": category["id"], "name": name}
        if not _check_id(category["id"], where, findings):
            continue
        if category["id"] in categories:
            findings.add("duplicate-category-id", **where)
        elif isinstance(name, str) and name in names:
            findings.add("duplicate-category-name", **where)
        if isinstance(name, str):
            names.add(name)
        elif "name" in category:
            findings.add("wrong-type", key="name", **where)
        categories[category["id"]] = category
    ids = list(categories)
    _check_mixed("categories", ids, findings)
    if all(isinstance(one, int) for one in ids):
        if ids != sorted(ids):
            findings.add("categories-not-sorted", ids=ids)
        if sorted(ids) != list(range(1, len(ids) + 1)):
            findings.add("non-contiguous-categories", ids=ids)
    if num_classes is not None and len(categories) != num_classes:
        kind = "too-many-categories" if len(categories) > num_classes else "too-few-categories"
        findings.add(kind, categories=len(categories), num_classes=num_classes)
    return categories


def check_annotations(
    entries: Sequence,
    images: Images,
    categories: dict[Any, dict[str, Any]],
    findings: Findings,
    *,
    masks: bool,
    keypoints: int | bool | None,
    frameworks: Collection[str],
    max_detections: int,
) -> list[int]:
    """Looks at every annotation; returns how many each category has, in the categories' order.

    Args:
        entries: the file's list.
        images, categories: what annotations belong to.
        masks: look at segmentations.
        keypoints: how many a detector wants; None: not known; False: do not look at them.
        frameworks: those whose objects are counted.
        max_detections: what an evaluator counts of an image.
    """
    if not entries:
        findings.add("no-annotations")
        return [0] * len(categories)
    reader = _Reader(images, categories, findings)
    # Lists of columns: a tuple for each annotation would keep Python's garbage collector busy.
    kept, rows, columns, boxes, flags = lists = [], [], [], [], []
    for one in _each_object("annotations", entries, findings):
        for values, value in zip(lists, (one, *reader.read(one)), strict=True):
            values.append(value)
    count, row = len(kept), np.array(rows, np.intp)
    size = np.full((count, 2), math.nan)
    size[row >= 0] = images.sizes[row[row >= 0]]
    area, crowd, crowd_too, ignore = np.array(flags, np.float64).reshape(-1, 4).T

    def place(index: int) -> dict[str, Any]:
        return reader.place(kept[index], rows[index])

    def example(index: int) -> dict[str, Any]:
        known = images.sizes[rows[index]].tolist() if rows[index] >= 0 else None
        return place(index) | {"bbox": kept[index].get("bbox"), "width, height": known}

    objects = Objects(
        boxes=np.array([list(map(to_float, box)) for box in boxes], np.float64).reshape(-1, 4),
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
    check_boxes(objects, np.array([box is not _NO_BOX for box in boxes], bool), findings)
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
    """Names what has no object, or too many; returns how many each category has."""
    known = objects.category[objects.category >= 0]
    instances = np.bincount(known, minlength=len(categories)).tolist()
    for (key, category), count in zip(categories.items(), instances, strict=True):
        if not count:
            name = category.get("name")
            findings.add("category-without-instances", category_id=key, name=name)
    of_image = np.bincount(objects.row[objects.row >= 0], minlength=len(images.records))
    empty = (row for row in images.row.values() if not of_image[row])
    findings.add_all("image-without-annotations", empty, images.place)
    scored = np.bincount(objects.row[(objects.row >= 0) & ~objects.crowd[:, 0]])
    findings.add_all(
        "many-objects",
        np.flatnonzero(scored > max_detections).tolist(),
        lambda row: images.place(row) | {"objects": int(scored[row]), "counted": max_detections},
    )
    return instances


class _Reader:
    """Looks at annotations one by one: what their ids stand for, flags, type of the box."""

    def __init__(
        self, images: Images, categories: dict[Any, dict[str, Any]], findings: Findings
    ) -> None:
        self.images, self.findings = images, findings
        self._categories = {key: column for column, key in enumerate(categories)}
        self._names = {str(category.get("name")): key for key, category in categories.items()}
        self._seen: set = set()

    def place(self, annotation: dict[str, Any], row: int) -> dict[str, Any]:
        return {
            "image_id": annotation.get("image_id"),
            "annotation_id": annotation.get("id"),
            "file_name": self.images.records[row].get("file_name") if row >= 0 else None,
        }

    def read(self, annotation: dict[str, Any]) -> tuple[int, int, Any, tuple]:
        """Returns its image's row and its category's position (-1: there is none), its box and
        its flags."""
        row = column = -1
        findings = self.findings

        def add(kind: str, **values: Any) -> None:
            findings.add(kind, **self.place(annotation, row) | values)

        image, own = annotation.get("image_id"), annotation.get("id")
        category = annotation.get("category_id")
        if "image_id" in annotation and _check_id(image, annotation, findings):
            row = self.images.row.get(image, -1)
            if row < 0:
                meant = self._guess_image(image)
                add("unknown-image" if meant is None else "image-id-differs", images_id=meant)
        if "id" in annotation and _check_id(own, annotation, findings):
            if own in self._seen:
                add("duplicate-annotation-id")
            self._seen.add(own)
            if own == 0:
                add("annotation-id-zero")
            elif isinstance(own, str) and not math.isfinite(_parse_number(own)):
                add("annotation-id-text")
        if "category_id" in annotation and _check_id(category, annotation, findings):
            column = self._categories.get(category, -1)
            if column < 0:
                name = self._names.get(str(category))
                meant = self._spelled_categories.get(_normalize_id(category), name)
                add("unknown-category", category_id=category, categorys_id=meant)

        area, crowd = annotation.get("area"), annotation.get("iscrowd", 0)
        ignore = annotation.get("ignore", 0)
        if not is_number(area) or not math.isfinite(to_float(area)):
            add("area-missing", area=area)
            area = math.nan
        elif area <= 0:
            add("area-not-positive", area=area)
        if "iscrowd" not in annotation:
            add("iscrowd-missing")
        elif not isinstance(crowd, int | float) or crowd not in (0, 1):
            add("iscrowd-invalid", iscrowd=crowd)
        if ignore != 0:
            add("ignore-set", ignore=ignore)
        box = annotation.get("bbox", _NO_BOX)
        if box is not _NO_BOX and not is_numbers(box, 4):
            add("box-malformed", bbox=box)
            box = _NO_BOX
        # Detectron2 takes anything but 0 for a crowd, MMDetection what is true in Python.
        return row, column, box, (to_float(area), crowd != 0, bool(crowd), bool(ignore))

    @cached_property
    def _spelled_images(self) -> dict[str, Any]:
        return {_normalize_id(one): one for one in self.images.row}

    @cached_property
    def _spelled_categories(self) -> dict[str, Any]:
        return {_normalize_id(one): one for one in self._categories}

    @cached_property
    def _files(self) -> dict[str, Any]:
        found = {}
        for record in self.images.records:
            name = str(record.get("file_name"))
            found |= {name: record["id"], Path(name).stem: record["id"]}
        return found

    def _guess_image(self, value: Any) -> Any:
        """Returns the id that an ``image_id`` is another spelling of; None: there is none."""
        alike = self._spelled_images
        found = alike.get(_normalize_id(value))
        if found is not None or not isinstance(value, str):
            return found
        # Some tools write the file's name, with or without its extension.
        stem = Path(value).stem
        return self._files.get(value, self._files.get(stem, alike.get(_normalize_id(stem))))


def _each_object(key: str, entries: Sequence, findings: Findings) -> Iterator[dict[str, Any]]:
    """Yields the entries of a list that are objects, and names what they lack."""
    required = dict.fromkeys(_REQUIRED[key]).keys()
    if not entries and key != "annotations":
        findings.add("empty-list", key=key)
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            findings.add("wrong-type", list=key, position=position, entry=entry)
            continue
        if not required <= entry.keys():
            lacks = ", ".join(one for one in required if one not in entry)
            place = {"list": key, "position": position, "id": entry.get("id")}
            findings.add("missing-key", **place, lacks=lacks)
        yield entry


def _check_id(value: Any, entry: dict[str, Any], findings: Findings) -> bool:
    """Returns whether a value can stand for an annotation, or for the image or category where."""
    if type(value) is int:
        return True
    usable = isinstance(value, str) or (isinstance(value, float) and math.isfinite(value))
    place = {key: entry[key] for key in ("id", "image_id") if key in entry}
    findings.add("id-not-integer" if usable else "wrong-type", value=value, **place)
    return usable


def _check_mixed(key: str, ids: Sequence[Any], findings: Findings) -> None:
    texts = [value for value in ids if isinstance(value, str)]
    if texts and len(texts) < len(ids):
        findings.add("ids-mixed", list=key, text=texts[0], texts=len(texts), ids=len(ids))


def _normalize_id(value: Any) -> str:
    """Returns what different spellings of an id have in common: " Bolt", "bolt"; "07", 7.0."""
    text = "".join(str(value).split()).casefold()
    number = _parse_number(text)
    return str(int(number)) if math.isfinite(number) else text


def _parse_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _read_side(image: dict[str, Any], key: str, where: dict[str, Any], findings: Findings) -> float:
    """Width or height in pixels; NaN if it is missing or wrong."""
    value = image.get(key, math.nan)
    if key in image and (not is_number(value) or not 0 < value <= _LARGEST_SIDE or value % 1):
        findings.add("wrong-type", **where, key=key, value=value)
        return math.nan
    return float(value)
