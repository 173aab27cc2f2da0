"""Reading and checking what a COCO evaluation needs: the ground truth and the predictions.

pycocotools and faster-coco-eval score whatever they are given. A NaN box, a mask of the wrong size
or a category id counted from 0 instead of 1 shows up only as a lower AP, so it is refused here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradaug_det.errors import DataError
from gradaug_det.utils.files import read_json

logger = logging.getLogger(__name__)

_MAX_NAMED = 5  # how many ids an error message spells out


def load_ground_truth(source: str | Path | dict | Any) -> dict:
    """Read COCO ground truth into a dict that an evaluator may change freely.

    Args:
        source: path of an annotation file, its parsed content, or a COCO API object (one with a
            ``dataset`` attribute, of pycocotools or of faster-coco-eval).

    Returns:
        ``{"info", "images", "annotations", "categories"}``. Annotations are copies, since the
        evaluators write into them. If an annotation has id 0 they are numbered from 1: both
        evaluators mark "unmatched" with 0, which would count that object as missed.

    Raises:
        DataError: the file is no COCO ground truth, or an annotation lacks what scoring needs.
    """
    if hasattr(source, "dataset"):
        data, origin = source.dataset, "the given COCO object"
    elif isinstance(source, dict):
        data, origin = source, "the given ground truth"
    else:
        data, origin = _read_json(Path(source)), str(source)
    if not isinstance(data, dict):
        raise DataError(f"{origin} is a JSON {type(data).__name__}, COCO ground truth is an object")
    missing = [key for key in ("images", "annotations", "categories") if key not in data]
    if missing:
        raise DataError(
            f"{origin} has no {' and no '.join(map(repr, missing))}: it cannot be scored against. "
            "COCO's own test sets come without annotations; evaluate on a validation set."
        )

    for key in ("images", "annotations", "categories"):
        if not isinstance(data[key], (list, tuple)) or not all(
            isinstance(entry, dict) and "id" in entry for entry in data[key]
        ):
            raise DataError(f"{origin}: {key!r} must be a list of objects with an id")
    if not all("name" in category for category in data["categories"]):
        raise DataError(f"{origin}: every category needs a name")

    annotations = [dict(annotation) for annotation in data["annotations"]]
    for annotation in annotations:
        lacking = [
            key
            for key in ("id", "image_id", "category_id", "bbox", "area")
            if key not in annotation
        ]
        if lacking:
            raise DataError(
                f"{origin}: annotation {annotation.get('id')!r} has no "
                f"{', '.join(map(repr, lacking))}"
            )
    _refuse_repeats(origin, "annotation id", [a["id"] for a in annotations])
    _refuse_repeats(origin, "category id", [c["id"] for c in data["categories"]])
    # Per-category results are keyed by name, so two categories of one name would hide each other.
    _refuse_repeats(origin, "category name", [c["name"] for c in data["categories"]])

    if any(annotation["id"] == 0 for annotation in annotations):
        logger.warning("%s has an annotation with id 0; numbering its annotations from 1", origin)
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
    return {
        "info": data.get("info", {}),
        "images": list(data["images"]),
        "annotations": annotations,
        "categories": list(data["categories"]),
    }


def load_predictions(source: str | Path | Sequence[dict]) -> list[dict]:
    """Read predictions in COCO's result format (a list, or the path of a JSON list).

    Raises:
        DataError: the content is not a list of objects.
    """
    if isinstance(source, (str, Path)):
        predictions, origin = _read_json(Path(source)), str(source)
    else:
        predictions, origin = list(source), "the given predictions"
    if not isinstance(predictions, list) or not all(isinstance(p, dict) for p in predictions):
        raise DataError(
            f"{origin} is not in COCO's result format, which is a list of objects with "
            "image_id, category_id, score and bbox and/or segmentation"
        )
    return predictions


def check_scorable(predictions: list[dict], ground_truth: dict, iou_type: str) -> None:
    """Refuse what would be scored wrongly or crash an evaluator.

    Args:
        predictions: COCO result dicts; boxes are XYWH in pixels of the original image.
        ground_truth: from :func:`load_ground_truth`.
        iou_type: ``"bbox"``, ``"segm"`` or ``"keypoints"``.

    Raises:
        DataError: unknown image or category ids, boxes or scores that are not finite numbers, masks
            missing or of another size than their image; with the count and the first ids.
    """
    images = {image["id"] for image in ground_truth["images"]}
    categories = {category["id"] for category in ground_truth["categories"]}
    field = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}[iou_type]
    for key in ("image_id", "category_id", "score", field):
        lacking = [p for p in predictions if p.get(key) is None or _is_empty_list(p[key])]
        if lacking:
            hint = (
                f"; leave {iou_type!r} out of iou_types if the model has no such output"
                if key == field
                else ""
            )
            raise DataError(
                f"{len(lacking)} of {len(predictions)} predictions have no {key!r} "
                f"(first image id: {lacking[0].get('image_id')!r}){hint}"
            )

    unknown = _distinct(p["image_id"] for p in predictions if p["image_id"] not in images)
    if unknown:
        raise DataError(
            f"predictions for {len(unknown)} image ids that the ground truth does not have: "
            f"{_named(unknown)}. Are they from another dataset or split?"
        )
    unknown = _distinct(p["category_id"] for p in predictions if p["category_id"] not in categories)
    if unknown:
        raise DataError(
            f"predictions of category ids that the ground truth does not have: {_named(unknown)}; "
            f"it has {_named(sorted(categories), limit=100)}. Class indices counted from 0 have to "
            "be mapped back to the dataset's category ids."
        )

    if not _finite([p["score"] for p in predictions], (len(predictions),)):
        broken = [p for p in predictions if not _finite(p["score"], ())]
        raise DataError(_not_finite("scores", broken, predictions))
    if iou_type == "bbox":
        if not _finite([p["bbox"] for p in predictions], (len(predictions), 4)):
            broken = [p for p in predictions if not _finite(p["bbox"], (4,))]
            raise DataError(_not_finite("boxes", broken, predictions))
    elif iou_type == "keypoints":
        _check_keypoints(predictions, ground_truth)
    else:
        _check_masks(predictions, ground_truth)


def _check_keypoints(predictions: list[dict], ground_truth: dict) -> None:
    objects = [a for a in ground_truth["annotations"] if a.get("keypoints")]
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
    broken = [p for p in predictions if not _finite(p["keypoints"], (length,))]
    if broken:
        raise DataError(
            f"{len(broken)} of {len(predictions)} predictions have no {length} finite numbers, x, "
            f"y, v of each keypoint (first image id: {broken[0]['image_id']!r})"
        )


def _check_masks(predictions: list[dict], ground_truth: dict) -> None:
    for annotation in ground_truth["annotations"]:
        if not annotation.get("segmentation"):
            raise DataError(
                f"ground truth annotation {annotation['id']} has no segmentation; leave 'segm' out "
                "of iou_types for a dataset of boxes"
            )
    sizes = {}
    for image in ground_truth["images"]:
        if not ("height" in image and "width" in image):
            raise DataError(f"ground truth image {image['id']} has no height and width")
        sizes[image["id"]] = (image["height"], image["width"])

    for prediction in predictions:
        segmentation, image_id = prediction["segmentation"], prediction["image_id"]
        if not isinstance(segmentation, dict) or not isinstance(
            segmentation.get("counts"), (str, bytes)
        ):
            raise DataError(
                f"a predicted mask on image {image_id} is no compressed RLE "
                "({'size': [height, width], 'counts': str})"
            )
        if tuple(segmentation.get("size", ())) != sizes[image_id]:
            # pycocotools gives such a pair the IoU -1: a miss that nobody sees.
            raise DataError(
                f"a predicted mask on image {image_id} has size {segmentation.get('size')}, the "
                f"image has {list(sizes[image_id])} (height, width)"
            )


def _is_empty_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and not value


def _finite(values: Any, shape: tuple[int, ...]) -> bool:
    """Whether they are finite numbers in an array of that shape; of no values any shape is."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return array.size == 0 or (array.shape == shape and bool(np.isfinite(array).all()))


def _not_finite(what: str, broken: list[dict], predictions: list[dict]) -> str:
    return (
        f"{len(broken)} of {len(predictions)} predictions have {what} that are not finite numbers "
        f"(first image id: {broken[0]['image_id']!r}): the model has probably diverged"
    )


def _refuse_repeats(origin: str, what: str, values: list) -> None:
    if len(set(values)) == len(values):
        return
    seen: set = set()
    repeated = _distinct(v for v in values if v in seen or seen.add(v))
    raise DataError(f"{origin} repeats {what} {_named(repeated)}")


def _distinct(values: Iterable) -> list:
    return list(dict.fromkeys(values))


def _named(values: Sequence, limit: int = _MAX_NAMED) -> str:
    more = f" and {len(values) - limit} more" if len(values) > limit else ""
    return ", ".join(repr(value) for value in values[:limit]) + more


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
