"""A data set in COCO's format, parsed once, and what can be scored against it.

pycocotools and faster-coco-eval score whatever they are given. A NaN box, a mask of the wrong size
or a category id counted from 0 instead of 1 shows up only as a lower AP, so it is refused here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gradaug_det.errors import DataError
from gradaug_det.utils.files import read_json

_MAX_NAMED = 5  # how many ids an error message spells out
_SCORED = ("id", "image_id", "category_id", "bbox", "area")
_EXPORT = "labelling tools have formats of their own: export it as COCO"


class CocoData:
    """A data set in COCO's format, which checks, a training, a benchmark and its report share.

    The file is parsed once, by :meth:`read`. Its entries are nobody's to change: evaluators, which
    write into annotations, get copies.

    Args:
        content: of an annotation file.
        path: of that file; None if the content came from elsewhere.
        folder: of the images; None if it is not known.
        name: for readers.

    Attributes:
        origin: what a sentence calls the annotations.
        images, annotations, categories: the file's lists; annotations are empty if it has none.

    Raises:
        DataError: it is no object, or lacks images or categories.
    """

    def __init__(
        self, content: Any, path: Path | None = None, folder: Path | None = None, name: str = ""
    ) -> None:
        self.path, self.folder, self.name = path, folder, name
        self.origin = str(path or "the given ground truth")
        if not isinstance(content, dict):
            raise DataError(
                f"{self.origin} holds a JSON {type(content).__name__}, a COCO annotation file is "
                f"an object; is it a file of predictions? {_EXPORT}"
            )
        self.content = {"annotations": [], **content}
        for key in ("images", "annotations", "categories"):
            value = self.content.get(key)
            if not isinstance(value, list | tuple):
                problem = f"a {type(value).__name__}, not a list" if key in content else "missing"
                raise DataError(
                    f"{self.origin}: {key!r} is {problem}; is it a COCO annotation file? {_EXPORT}"
                )
            setattr(self, key, value)
        self._annotated = "annotations" in content

    @classmethod
    def read(cls, source: Any, folder: str | Path | None = None, name: str = "") -> CocoData:
        """Parses an annotation file; what is parsed already is taken as it is.

        Args:
            source: path of an annotation file, its parsed content, a COCO API object (one with a
                ``dataset``, of pycocotools or of faster-coco-eval), or a CocoData.
            folder, name: see the class.

        Raises:
            DataError: it is missing, no JSON, or no COCO annotation file.
        """
        if isinstance(source, cls):
            return source
        content, path = getattr(source, "dataset", source), None
        if isinstance(source, str | Path):
            path = Path(source)
            try:
                content = read_json(path)
            except FileNotFoundError:
                raise DataError(f"the annotation file {path} is missing") from None
            except OSError as error:
                problem = f"the annotation file {path} cannot be read: {error.strerror}"
                raise DataError(problem) from None
        return cls(content, path, None if folder is None else Path(folder), name)

    @cached_property
    def classes(self) -> tuple[tuple[Any, str], ...]:
        """(id, name) of the categories in the order of their ids, which is that of the classes."""
        return tuple(sorted((one["id"], one["name"]) for one in self.truth["categories"]))

    @cached_property
    def truth(self) -> dict[str, Any]:
        """The ground truth of a COCO evaluation: ``{"info", "images", "annotations",
        "categories"}``, looked at once.

        Raises:
            DataError: an entry lacks what scoring needs, or ids or names repeat.
        """
        if not self._annotated:
            raise DataError(
                f"{self.origin} has no 'annotations': it cannot be scored against. COCO's own test "
                "sets come without annotations; evaluate on a validation set."
            )
        keys = ("images", "annotations", "categories")
        for key in keys:
            if not all(isinstance(one, dict) and "id" in one for one in getattr(self, key)):
                raise DataError(f"{self.origin}: {key!r} must be a list of objects with an id")
        if not all("name" in category for category in self.categories):
            raise DataError(f"{self.origin}: every category needs a name")
        for annotation in self.annotations:
            if lacking := [repr(key) for key in _SCORED if key not in annotation]:
                raise DataError(
                    f"{self.origin}: annotation {annotation['id']!r} has no {', '.join(lacking)}"
                )
        # Results of a category are keyed by its name: two of one name would hide each other.
        for what, entries in (
            ("annotation id", self.annotations),
            ("category id", self.categories),
            ("category name", self.categories),
        ):
            counts = Counter(one[what.split()[1]] for one in entries)
            if repeated := [value for value, count in counts.items() if count > 1]:
                raise DataError(f"{self.origin} repeats {what} {_list_first(repeated)}")
        lists = {key: list(getattr(self, key)) for key in keys}
        return {"info": self.content.get("info", {}), **lists}


def load_predictions(source: str | Path | Sequence[dict]) -> list[dict]:
    """Reads predictions in COCO's result format (a list, or the path of a JSON list).

    Raises:
        DataError: the content is not a list of objects.
    """
    predictions, origin = source, "the given predictions"
    if isinstance(source, str | Path):
        origin = str(source)
        try:
            predictions = read_json(Path(source))
        except FileNotFoundError as error:
            raise DataError(f"{source} does not exist") from error
    listed = isinstance(predictions, list | tuple)  # "" is a Sequence of no predictions
    if not listed or not all(isinstance(p, dict) for p in predictions):
        raise DataError(
            f"{origin} is not in COCO's result format, which is a list of objects with "
            "image_id, category_id, score and bbox and/or segmentation"
        )
    return list(predictions)


def check_scorable(predictions: Sequence[dict], truth: dict[str, Any], iou_type: str) -> None:
    """Refuses what would be scored wrongly or crash an evaluator.

    Args:
        predictions: COCO result dicts; boxes are XYWH in pixels of the original image.
        truth: of :attr:`CocoData.truth`.
        iou_type: ``"bbox"``, ``"segm"`` or ``"keypoints"``.

    Raises:
        DataError: unknown image or category ids, boxes or scores that are not finite numbers, masks
            missing or of another size than their image; with the count and the first ids.
    """
    images = {image["id"] for image in truth["images"]}
    categories = {category["id"] for category in truth["categories"]}
    field = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}[iou_type]
    for key in ("image_id", "category_id", "score", field):
        if lacking := [p for p in predictions if _is_missing(p.get(key))]:
            way_out = f"; leave {iou_type!r} out of iou_types if the model has no such output"
            raise DataError(
                f"{len(lacking)} of {len(predictions)} predictions have no {key!r} (first image "
                f"id: {lacking[0].get('image_id')!r}){way_out if key == field else ''}"
            )
    found = dict.fromkeys(p["image_id"] for p in predictions)
    if unknown := [one for one in found if one not in images]:
        raise DataError(
            f"predictions for {len(unknown)} image ids that the ground truth does not have: "
            f"{_list_first(unknown)}. Are they from another dataset or split?"
        )
    found = dict.fromkeys(p["category_id"] for p in predictions)
    if unknown := [one for one in found if one not in categories]:
        raise DataError(
            "predictions of category ids that the ground truth does not have: "
            f"{_list_first(unknown)}; it has {_list_first(sorted(categories), limit=100)}. Class "
            "indices counted from 0 have to be mapped back to the dataset's category ids."
        )
    diverged = "that are not finite numbers", ": the model has probably diverged"
    _check_finite(predictions, "score", (), f"scores {diverged[0]}", diverged[1])
    if iou_type == "bbox":
        _check_finite(predictions, "bbox", (4,), f"boxes {diverged[0]}", diverged[1])
    elif iou_type == "keypoints":
        length = _count_numbers(truth)
        wanted = f"no {length} finite numbers, x, y, v of each keypoint"
        _check_finite(predictions, "keypoints", (length,), wanted)
    else:
        _check_masks(predictions, truth)


def _count_numbers(truth: dict[str, Any]) -> int:
    """The length of the objects' lists of keypoints, which has to be one for all."""
    objects = [a for a in truth["annotations"] if a.get("keypoints")]
    if not objects:
        raise DataError(
            "no object of the ground truth has keypoints; evaluate on data that has them, or leave "
            "the task 'keypoints' out"
        )
    length = len(objects[0]["keypoints"])
    for annotation in objects:
        if len(annotation["keypoints"]) != length or length % 3:
            raise DataError(
                f"annotation {annotation['id']} has {len(annotation['keypoints'])} numbers as "
                f"keypoints and annotation {objects[0]['id']} {length}; all objects need x, y, v "
                "of the same keypoints"
            )
    return length


def _check_masks(predictions: Sequence[dict], truth: dict[str, Any]) -> None:
    for annotation in truth["annotations"]:
        if not annotation.get("segmentation"):
            raise DataError(
                f"ground truth annotation {annotation['id']} has no segmentation; leave 'segm' out "
                "of iou_types for a dataset of boxes"
            )
    for image in truth["images"]:
        if not ("height" in image and "width" in image):
            raise DataError(f"ground truth image {image['id']} has no height and width")
    sizes = {image["id"]: [image["height"], image["width"]] for image in truth["images"]}
    for prediction in predictions:
        mask, size = prediction["segmentation"], sizes[prediction["image_id"]]
        said = f"a predicted mask on image {prediction['image_id']}"
        if not isinstance(mask, dict) or not isinstance(mask.get("counts"), str | bytes):
            raise DataError(
                f"{said} is no compressed RLE ({{'size': [height, width], 'counts': str}})"
            )
        if list(mask.get("size", ())) != size:
            # pycocotools gives such a pair the IoU -1: a miss that nobody sees.
            raise DataError(
                f"{said} has size {mask.get('size')}, the image has {size} (height, width)"
            )


def _check_finite(
    predictions: Sequence[dict], key: str, shape: tuple[int, ...], problem: str, cause: str = ""
) -> None:
    # All at once first: a benchmark has hundreds of thousands of them.
    if _is_finite([p[key] for p in predictions], (len(predictions), *shape)):
        return
    broken = [p for p in predictions if not _is_finite(p[key], shape)]
    raise DataError(
        f"{len(broken)} of {len(predictions)} predictions have {problem} (first image id: "
        f"{broken[0]['image_id']!r}){cause}"
    )


def _is_finite(values: Any, shape: tuple[int, ...]) -> bool:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return array.size == 0 or (array.shape == shape and bool(np.isfinite(array).all()))


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, list | tuple) and not value)


def _list_first(values: Sequence, limit: int = _MAX_NAMED) -> str:
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(repr(value) for value in values[:limit]) + more
