"""COCO's metrics of boxes, masks and keypoints, scored by faster-coco-eval.

The result has the shape of Detectron2's ``COCOEvaluator``: ``{"bbox": {"AP": 40.2, ...}}``, in per
cent, NaN where the ground truth has no object of that kind. So numbers of this function, of
Detectron2 and of a saved report can be put next to each other.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradaug_det.errors import ConfigError
from gradaug_det.evaluation.coco_data import CocoData, check_scorable, load_predictions

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
PrecisionCurves = dict[float, list[tuple[float, float]]]
"""IoU -> (recall, precision) in per cent by rising recall; empty where there is no object."""
_RESULT_KEYS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
_COCO_KEYPOINTS = 17  # which the evaluators' own sigmas are for


@dataclass(frozen=True)
class Scoring:
    """How a detector's own config has its detections scored.

    Args:
        tasks: of :data:`TASKS`; None: boxes, and what else was found.
        max_detections, sigmas: see :func:`run_evaluator`.
    """

    tasks: tuple[str, ...] | None = None
    max_detections: int = 100
    sigmas: tuple[float, ...] | None = None

    @property
    def limits(self) -> dict[str, Any]:
        """The settings of :func:`run_evaluator`."""
        return {"max_detections": self.max_detections, "sigmas": self.sigmas}

    def tasks_of(self, results: Sequence[dict]) -> tuple[str, ...]:
        """Returns which tasks of these results are scored."""
        if self.tasks is not None:
            return self.tasks
        found = [task for task in TASKS if any(_RESULT_KEYS[task] in one for one in results)]
        return ("bbox", *(task for task in found if task != "bbox"))


def evaluate_coco(
    ground_truth: Any,
    predictions: str | Path | Sequence[dict],
    iou_types: Sequence[str] = IOU_TYPES,
    **settings: Any,
) -> dict[str, dict[str, float]]:
    """Scores detections against COCO ground truth.

    Args:
        ground_truth: whatever :meth:`.coco_data.CocoData.read` takes. Not modified.
        predictions: COCO result dicts (boxes XYWH in pixels, masks as compressed RLE, keypoints as
            x, y, v of each) or the path of a JSON list of them. Not modified. May be empty.
        iou_types: which of ``"bbox"``, ``"segm"`` and ``"keypoints"`` to score.
        settings: those of :func:`run_evaluator`, from ``backend`` on.

    Returns:
        ``{iou_type: {metric: per cent}}`` with COCO's twelve numbers (:data:`COCO_METRICS`; the
        third recall is called after ``max_detections``; keypoints have no small objects and one
        recall, AR20) and ``"AP-<category name>"`` for each category. Without predictions they are
        0. NaN where there is no object to be found.

    Raises:
        ConfigError: an unknown IoU type or setting.
        DataError: ground truth or predictions that cannot be scored; see :mod:`.coco_data`.
    """
    if isinstance(iou_types, str) or not set(iou_types) <= set(TASKS):
        raise ConfigError(
            "iou_types", f"{iou_types!r} is not understood; give a sequence of {list(TASKS)}"
        )
    truth, predictions = CocoData.read(ground_truth).truth, load_predictions(predictions)
    evaluators = {task: run_evaluator(truth, predictions, task, **settings) for task in iou_types}
    return {task: _summarise(one, truth["categories"]) for task, one in evaluators.items()}


def run_evaluator(
    truth: dict,
    predictions: Sequence[dict],
    iou_type: str,
    *,
    backend: str = "faster",
    image_ids: Sequence[int] | None = None,
    max_detections: int = 100,
    sigmas: Sequence[float] | None = None,
) -> Any:
    """Runs one COCO evaluator and returns it with its ``eval`` arrays filled.

    Args:
        truth: of :attr:`.coco_data.CocoData.truth`.
        predictions: COCO result dicts.
        iou_type: ``"bbox"``, ``"segm"`` or ``"keypoints"``.
        backend: ``"faster"`` (faster-coco-eval, C++) or ``"pycocotools"`` (the reference, slower).
        image_ids: score only these images; by default all of the ground truth.
        max_detections: how many of an image's highest scoring detections of a category count;
            at least 10. Of keypoints, 20 count, as in COCO.
        sigmas: of keypoints, one for each, which say how far off is still right; None: COCO's own.

    Returns:
        The evaluator after ``evaluate`` and ``accumulate``: ``eval["precision"]`` of shape (IoU,
        recall, category, area, maximum detections), ``eval["recall"]`` without the recall axis.

    Raises:
        ConfigError: an unknown backend, fewer than 10 maximum detections, or sigmas for another
            number of keypoints than the ground truth has.
        DataError: predictions that cannot be scored.
    """
    from faster_coco_eval import COCO, COCOeval_faster
    from pycocotools.cocoeval import COCOeval

    if backend not in BACKENDS:
        raise ConfigError("backend", f"{backend!r} is unknown; choose one of {list(BACKENDS)}")
    if max_detections < 10:
        # Recall is reported at 1, 10 and the maximum, which the evaluators sort.
        raise ConfigError(
            "max_detections", f"{max_detections} is too small; use 10 or more (COCO: 100)"
        )
    check_scorable(predictions, truth, iou_type)
    # The evaluators' C++ wants natural numbers, where files have -3, 1.0 and "a7" as well. The
    # order of images decides between equal scores.
    ordered = sort_ids({image["id"] for image in truth["images"]})
    number = {image_id: row for row, image_id in enumerate(ordered, start=1)}
    content = {**truth, "images": [{**one, "id": number[one["id"]]} for one in truth["images"]]}
    content["annotations"] = [
        # From 1 on, whatever the file's ids are: an object numbered 0 would count as unmatched.
        {**annotation, "id": row, "image_id": number.get(annotation["image_id"], 0)}
        for row, annotation in enumerate(truth["annotations"], start=1)
    ]
    if iou_type == "keypoints":
        _complete_keypoints(content["annotations"], check_sigmas(truth, sigmas))
    # Only the key to be scored: beside a box, a mask would count as small or large by that.
    key = _RESULT_KEYS[iou_type]
    results = [
        {
            "image_id": number[found["image_id"]],
            "category_id": found["category_id"],
            "score": float(found["score"]),
            key: found[key] if iou_type == "segm" else [float(value) for value in found[key]],
        }
        for found in predictions
    ]
    evaluator_type = COCOeval if backend == "pycocotools" else COCOeval_faster
    # Both libraries report on stdout, which belongs to whoever called us.
    with contextlib.redirect_stdout(io.StringIO()) as chatter:
        truth_api = COCO(content)
        evaluator = evaluator_type(truth_api, truth_api.loadRes(results), iou_type)
        evaluator.print_function = logger.debug
        # For keypoints, faster-coco-eval leaves out the categories without objects.
        evaluator.params.catIds = sorted(category["id"] for category in truth["categories"])
        if iou_type != "keypoints":
            evaluator.params.maxDets = [1, 10, max_detections]
        elif sigmas is not None:
            evaluator.params.kpt_oks_sigmas = np.array(sigmas, dtype=float)
        if image_ids is not None:
            evaluator.params.imgIds = [number[image_id] for image_id in image_ids]
        evaluator.evaluate()
        evaluator.accumulate()
    logger.debug(chatter.getvalue().rstrip())
    return evaluator


def precision_curves(
    truth: dict, predictions: Sequence[dict], task: str, **settings: Any
) -> PrecisionCurves:
    """Returns COCO's 101 points at IoU 0.5 and 0.75, mean over the categories that have objects;
    of the arguments of :func:`run_evaluator`."""
    evaluator = run_evaluator(truth, predictions, task, **settings)
    precision = 100 * evaluator.eval["precision"][..., 0, -1]  # (IoU, recall, category)
    existing = (precision >= 0).all(axis=(0, 1))
    recall = (100 * np.asarray(evaluator.params.recThrs)).tolist()
    curves: PrecisionCurves = {0.5: [], 0.75: []}
    for iou in curves if existing.any() else ():
        (at_iou,) = precision[np.isclose(evaluator.params.iouThrs, iou)]
        curves[iou] = list(zip(recall, at_iou[:, existing].mean(axis=1).tolist(), strict=True))
    return curves


def sort_ids(ids: Iterable[Any]) -> list[Any]:
    """Sorts the ids of images, of which a file may have numbers and texts."""
    return sorted(ids, key=lambda value: (isinstance(value, str), value))


def check_sigmas(truth: dict, sigmas: Sequence[float] | None, key: str = "sigmas") -> int:
    """Returns how many keypoints the ground truth's objects have, of which some have any.

    Raises:
        ConfigError: there is not one sigma for each, or without any, COCO's 17 do not fit.
    """
    count = next(len(a["keypoints"]) // 3 for a in truth["annotations"] if a.get("keypoints"))
    if count != (_COCO_KEYPOINTS if sigmas is None else len(sigmas)):
        given = f"{len(sigmas or ())} numbers"
        if sigmas is None:
            given = f"COCO's own {_COCO_KEYPOINTS}, without a setting"
        problem = f"must be {count} numbers, one for each keypoint of the data set; these are"
        raise ConfigError(key, f"{problem} {given}")
    return count


def _complete_keypoints(annotations: Sequence[dict], count: int) -> None:
    # Objects without keypoints are left out of the score, and need a list all the same.
    for annotation in annotations:
        points = annotation["keypoints"] = annotation.get("keypoints") or [0, 0, 0] * count
        annotation.setdefault("num_keypoints", sum(visible > 0 for visible in points[2::3]))


def _summarise(evaluator: Any, categories: list[dict]) -> dict[str, float]:
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    params = evaluator.params
    at_50, at_75 = (np.isclose(params.iouThrs, value) for value in (0.5, 0.75))
    # Axes from behind: maximum detections (1, 10, 100), area (all, small, medium, large), category.
    metrics = {
        "AP": _mean(precision[..., 0, -1]),
        "AP50": _mean(precision[at_50, ..., 0, -1]),
        "AP75": _mean(precision[at_75, ..., 0, -1]),
    }
    areas = list(enumerate((label[0] for label in params.areaRngLbl[1:]), start=1))
    metrics |= {f"AP{suffix}": _mean(precision[..., area, -1]) for area, suffix in areas}
    for position, limit in enumerate(params.maxDets):
        metrics[f"AR{limit}"] = _mean(recall[..., 0, position])
    metrics |= {f"AR{suffix}": _mean(recall[..., area, -1]) for area, suffix in areas}
    names = {category["id"]: category["name"] for category in categories}
    for position, category_id in enumerate(params.catIds):
        ap = _mean(precision[:, :, position, 0, -1])
        metrics[f"{CATEGORY_PREFIX}{names[category_id]}"] = ap
    return metrics


def _mean(values: np.ndarray) -> float:
    # Mean in per cent of the entries that exist; the evaluators mark the others with -1.
    existing = values[values > -1]
    return float(existing.mean() * 100) if existing.size else float("nan")
