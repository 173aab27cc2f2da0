"""Which images a detector does best and worst on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def image_scores(
    ground_truth: dict,
    predictions: Sequence[dict],
    image_ids: Sequence[int],
    score_threshold: float,
) -> Mapping[int, float]:
    """F1 of each image that has objects, in [0, 1].

    Detections that score at least the threshold are matched, best first, to the object of their
    category that they overlap most with, at a box IoU of 0.5 or more. Crowds count as nothing, nor
    do detections mostly inside one.

    Returns:
        Image id -> 2 * matches / (objects + detections).
    """
    truth = _by_image(ground_truth["annotations"], image_ids)
    found = _by_image([p for p in predictions if p["score"] >= score_threshold], image_ids)
    return {
        image_id: score
        for image_id in image_ids
        if (score := _f1(truth[image_id], found[image_id])) is not None
    }


def _f1(truth: list[dict], found: list[dict]) -> float | None:
    objects = [a for a in truth if not a.get("iscrowd")]
    if not objects:
        return None
    crowds = [a for a in truth if a.get("iscrowd")]
    free, matches, counted = set(range(len(objects))), 0, 0
    for detection in sorted(found, key=lambda p: -p["score"]):
        same = [i for i in free if objects[i]["category_id"] == detection["category_id"]]
        overlaps = _ious(detection, [objects[i] for i in same])
        if len(overlaps) and overlaps.max() >= 0.5:
            free.remove(same[int(overlaps.argmax())])
            matches, counted = matches + 1, counted + 1
        elif not (_ious(detection, crowds, crowd=True) >= 0.5).any():
            counted += 1
    return 2 * matches / (len(objects) + counted)


def _ious(detection: dict, others: list[dict], crowd: bool = False) -> np.ndarray:
    from pycocotools import mask

    if not others:
        return np.zeros(0)
    boxes = [[float(v) for v in other["bbox"]] for other in others]
    return mask.iou([detection["bbox"]], boxes, [crowd] * len(boxes))[0]


def _by_image(items: Sequence[dict], image_ids: Sequence[int]) -> dict[int, list[dict]]:
    grouped: dict[int, list[dict]] = {image_id: [] for image_id in image_ids}
    for item in items:
        if item["image_id"] in grouped:
            grouped[item["image_id"]].append(item)
    return grouped
