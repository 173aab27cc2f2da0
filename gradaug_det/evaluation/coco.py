"""COCO's metrics of boxes, masks and keypoints, scored by faster-coco-eval.

The result has the shape of Detectron2's ``COCOEvaluator``: ``{"bbox": {"AP": 40.2, ...}}``, in per
cent, NaN where the ground truth has no object of that kind. So numbers of this function, of
Detectron2 and of a saved report can be put next to each other.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradaug_det.errors import ConfigError
from gradaug_det.evaluation.coco_data import check_scorable, load_ground_truth, load_predictions

logger = logging.getLogger(__name__)

IOU_TYPES = ("bbox", "segm")
TASKS = (*IOU_TYPES, "keypoints")
BACKENDS = ("faster", "pycocotools")
COCO_METRICS = (
    *("AP", "AP50", "AP75", "APs", "APm", "APl"),
    *("AR1", "AR10", "AR100", "ARs", "ARm", "ARl"),
)
TASK_NAMES = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}
CATEGORY_PREFIX = "AP-"
_KEYPOINTS = 17
"""Of COCO's own skeleton, which the evaluators' own sigmas are for."""


@dataclass(frozen=True)
class Scoring:
    """How a detector's own config has its detections scored.

    Args:
        tasks: of :data:`TASKS`; None: boxes, and what else was found.
        max_detections, sigmas: see :func:`evaluate_coco`.
    """

    tasks: tuple[str, ...] | None = None
    max_detections: int = 100
    sigmas: tuple[float, ...] | None = None

    def tasks_of(self, results: Sequence[dict]) -> tuple[str, ...]:
        """What of these results is scored."""
        if self.tasks is not None:
            return self.tasks
        masks, keypoints = (any(key in r for r in results) for key in ("segmentation", "keypoints"))
        return ("bbox", *["segm"] * masks, *["keypoints"] * keypoints)


def evaluate_coco(
    ground_truth: str | Path | dict | Any,
    predictions: str | Path | Sequence[dict],
    iou_types: Sequence[str] = IOU_TYPES,
    *,
    backend: str = "faster",
    image_ids: Sequence[int] | None = None,
    max_detections: int = 100,
    sigmas: Sequence[float] | None = None,
) -> dict[str, dict[str, float]]:
    """Score detections against COCO ground truth.

    Args:
        ground_truth: path of an annotation file, its content, or a COCO API object. Not modified.
        predictions: COCO result dicts (boxes XYWH in pixels, masks as compressed RLE, keypoints as
            x, y, v of each) or the path of a JSON list of them. Not modified. May be empty.
        iou_types: which of ``"bbox"``, ``"segm"`` and ``"keypoints"`` to score.
        backend: ``"faster"`` (faster-coco-eval, C++) or ``"pycocotools"`` (the reference, slower).
        image_ids: score only these images; by default all of the ground truth.
        max_detections: how many of an image's highest scoring detections of a category count;
            at least 10. Of keypoints, 20 count, as in COCO.
        sigmas: of keypoints, one for each, which say how far off is still right; None: COCO's own.

    Returns:
        ``{iou_type: {metric: per cent}}`` with COCO's twelve numbers (:data:`COCO_METRICS`; the
        third recall is called after ``max_detections``; keypoints have no small objects and one
        recall, AR20) and ``"AP-<category name>"`` for each category. Without predictions they are
        0. NaN where there is no object to be found.

    Raises:
        ConfigError: an unknown IoU type or backend, fewer than 10 maximum detections, or sigmas for
            another number of keypoints than the ground truth has.
        DataError: ground truth or predictions that cannot be scored; see :mod:`.coco_data`.
    """
    unknown = [iou_type for iou_type in iou_types if iou_type not in TASKS]
    if unknown or isinstance(iou_types, str):
        raise ConfigError(
            "iou_types", f"{iou_types!r} is not understood; give a sequence of {list(TASKS)}"
        )
    ground_truth, predictions = load_ground_truth(ground_truth), load_predictions(predictions)
    results = {}
    for iou_type in iou_types:
        evaluator = run_evaluator(
            ground_truth,
            predictions,
            iou_type,
            backend=backend,
            image_ids=image_ids,
            max_detections=max_detections,
            sigmas=sigmas,
        )
        results[iou_type] = _summarise(evaluator, ground_truth["categories"])
    return results


def run_evaluator(
    ground_truth: dict,
    predictions: Sequence[dict],
    iou_type: str,
    *,
    backend: str = "faster",
    image_ids: Sequence[int] | None = None,
    max_detections: int = 100,
    sigmas: Sequence[float] | None = None,
) -> Any:
    """Run one COCO evaluator and return it with its ``eval`` arrays filled.

    Args:
        ground_truth: from :func:`.coco_data.load_ground_truth`.
        predictions: COCO result dicts.
        iou_type: ``"bbox"``, ``"segm"`` or ``"keypoints"``.
        backend, image_ids, max_detections, sigmas: see :func:`evaluate_coco`.

    Returns:
        The evaluator after ``evaluate`` and ``accumulate``: ``eval["precision"]`` of shape (IoU,
        recall, category, area, maximum detections), ``eval["recall"]`` without the recall axis.

    Raises:
        ConfigError: an unknown backend, fewer than 10 maximum detections, or wrong sigmas.
        DataError: predictions that cannot be scored.
    """
    if backend not in BACKENDS:
        raise ConfigError("backend", f"{backend!r} is unknown; choose one of {list(BACKENDS)}")
    if max_detections < 10:
        # Recall is reported at 1, 10 and the maximum, which the evaluators sort.
        raise ConfigError(
            "max_detections", f"{max_detections} is too small; use 10 or more (COCO: 100)"
        )
    check_scorable(list(predictions), ground_truth, iou_type)
    truth = [dict(annotation) for annotation in ground_truth["annotations"]]
    if iou_type == "keypoints":
        sigmas = check_sigmas(ground_truth, sigmas)
        for annotation in truth:
            _complete_keypoints(annotation, ground_truth)
    make_api, evaluator_type = _backend(backend)
    # The evaluators' C++ wants natural numbers, where files have -3, 1.0 and "a7" as well. The
    # order of images decides between equal scores.
    ids = {image["id"] for image in ground_truth["images"]}
    number = {one: row for row, one in enumerate(sorted(ids, key=_by_type), start=1)}
    images = [{**image, "id": number[image["id"]]} for image in ground_truth["images"]]
    for row, annotation in enumerate(truth, start=1):
        annotation |= {"id": row, "image_id": number.get(annotation["image_id"], 0)}
    found = _as_annotations(predictions, iou_type)
    for annotation in found:
        annotation["image_id"] = number[annotation["image_id"]]

    # Both libraries report on stdout, which belongs to whoever called us.
    with contextlib.redirect_stdout(io.StringIO()) as chatter:
        truth_api = make_api({**ground_truth, "images": images, "annotations": truth})
        # What `loadRes` does, but that of pycocotools fails on an empty list.
        result_api = make_api(
            {
                "images": images,
                "categories": ground_truth["categories"],
                "annotations": found,
            }
        )
        evaluator = evaluator_type(truth_api, result_api, iou_type)
        if backend == "faster":
            evaluator.print_function = logger.debug
        # For keypoints, faster-coco-eval leaves out the categories without objects.
        evaluator.params.catIds = sorted(category["id"] for category in ground_truth["categories"])
        if iou_type != "keypoints":
            evaluator.params.maxDets = [1, 10, max_detections]
        elif sigmas is not None:
            evaluator.params.kpt_oks_sigmas = np.array(sigmas, dtype=float)
        if image_ids is not None:
            evaluator.params.imgIds = [number[one] for one in image_ids]
        evaluator.evaluate()
        evaluator.accumulate()
    if chatter.getvalue():
        logger.debug(chatter.getvalue().rstrip())
    return evaluator


def _by_type(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


def check_sigmas(
    ground_truth: dict, sigmas: Sequence[float] | None, key: str = "sigmas"
) -> Sequence[float] | None:
    """The sigmas, if keypoints of that ground truth can be scored with them.

    Raises:
        ConfigError: there is not one for each of the ground truth's keypoints. Without any, there
            must be COCO's 17.
    """
    count = _keypoints(ground_truth)
    given = _KEYPOINTS if sigmas is None else len(sigmas)
    if count is not None and given != count:
        what = f"COCO's own {given}, without a setting" if sigmas is None else f"{given} numbers"
        raise ConfigError(
            key, f"must be {count} numbers, one for each keypoint of the data set; these are {what}"
        )
    return sigmas


def _keypoints(ground_truth: dict) -> int | None:
    """How many keypoints an object of the ground truth has; None if no object has any."""
    counts = (len(a.get("keypoints") or ()) // 3 for a in ground_truth["annotations"])
    return next((count for count in counts if count), None)


def _complete_keypoints(annotation: dict, ground_truth: dict) -> None:
    """Objects without keypoints are left out of the score, and need a list all the same."""
    values = annotation.get("keypoints") or [0, 0, 0] * (_keypoints(ground_truth) or _KEYPOINTS)
    seen = sum(v > 0 for v in values[2::3])
    annotation |= {"keypoints": values, "num_keypoints": annotation.get("num_keypoints", seen)}


def _backend(name: str) -> tuple[Any, Any]:
    """A function from a dataset dict to a COCO API object, and the evaluator class."""
    if name == "faster":
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def make_api(dataset: dict) -> COCO:
        api = COCO()
        api.dataset = dataset
        api.createIndex()
        return api

    return make_api, COCOeval


def _as_annotations(predictions: Sequence[dict], iou_type: str) -> list[dict]:
    """What ``COCO.loadRes`` makes of results; the area decides what counts as small or large."""
    annotations = [
        {
            "id": number,
            "image_id": prediction["image_id"],
            "category_id": prediction["category_id"],
            "score": float(prediction["score"]),
            "iscrowd": 0,
        }
        for number, prediction in enumerate(predictions, start=1)
    ]
    if iou_type == "bbox":
        for annotation, prediction in zip(annotations, predictions, strict=True):
            x, y, width, height = map(float, prediction["bbox"])
            annotation["bbox"] = [x, y, width, height]
            annotation["area"] = width * height
    elif iou_type == "keypoints":
        for annotation, prediction in zip(annotations, predictions, strict=True):
            points = np.asarray(prediction["keypoints"], dtype=float).reshape(-1, 3)[:, :2]
            (x, y), (width, height) = points.min(axis=0), np.ptp(points, axis=0)
            annotation |= {"keypoints": list(map(float, prediction["keypoints"]))}
            annotation |= {"bbox": [x, y, width, height], "area": width * height}
    elif predictions:
        import pycocotools.mask

        # A mask is small or large by its own area, whatever box was predicted with it.
        masks = [prediction["segmentation"] for prediction in predictions]
        boxes = pycocotools.mask.toBbox(masks).tolist()
        for annotation, mask, box in zip(annotations, masks, boxes, strict=True):
            # One by one: of more than 255 masks pycocotools' area overflows (2.0.11, NumPy 2).
            area = float(pycocotools.mask.area(mask))
            annotation |= {"segmentation": mask, "area": area, "bbox": box}
    return annotations


def _summarise(evaluator: Any, categories: list[dict]) -> dict[str, float]:
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    thresholds = evaluator.params.iouThrs
    at_50, at_75 = (np.flatnonzero(np.isclose(thresholds, value)) for value in (0.5, 0.75))

    # Axes from behind: maximum detections (1, 10, 100), area (all, small, medium, large), category.
    metrics = {
        "AP": _mean(precision[..., 0, -1]),
        "AP50": _mean(precision[at_50, ..., 0, -1]),
        "AP75": _mean(precision[at_75, ..., 0, -1]),
    }
    areas = list(enumerate((label[0] for label in evaluator.params.areaRngLbl[1:]), start=1))
    for area, suffix in areas:
        metrics[f"AP{suffix}"] = _mean(precision[..., area, -1])
    for position, limit in enumerate(evaluator.params.maxDets):
        metrics[f"AR{limit}"] = _mean(recall[..., 0, position])
    for area, suffix in areas:
        metrics[f"AR{suffix}"] = _mean(recall[..., area, -1])

    names = {category["id"]: category["name"] for category in categories}
    for position, category_id in enumerate(evaluator.params.catIds):
        metrics[f"AP-{names[category_id]}"] = _mean(precision[:, :, position, 0, -1])
    return metrics


def _mean(values: np.ndarray) -> float:
    """Mean in per cent of the entries that exist; the evaluators mark the others with -1."""
    existing = values[values > -1]
    return float(existing.mean() * 100) if existing.size else float("nan")
