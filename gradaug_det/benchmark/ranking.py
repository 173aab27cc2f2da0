"""The images that a detector does best and worst on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from gradaug_det.evaluation.coco import run_evaluator, sort_ids


def image_scores(
    truth: dict, predictions: Sequence[dict], image_ids: Sequence[int], score_threshold: float
) -> dict[int, float]:
    """Returns the F1 of each image that has objects, in [0, 1].

    Detections that score at least the threshold are matched as COCO does at a box IoU of 0.5.
    Crowds count as nothing, nor do detections mostly inside one of their category.

    Returns:
        Image id -> 2 * matches / (objects + detections).
    """
    found = [p for p in predictions if p["score"] >= score_threshold]
    # pycocotools, because faster-coco-eval keeps what matched in C++ alone.
    evaluator = run_evaluator(truth, found, "bbox", backend="pycocotools", image_ids=image_ids)
    params = evaluator.params
    matches, objects, detections = (dict.fromkeys(image_ids, 0) for _ in range(3))
    # The evaluator's own image numbers rise with the ids.
    for (_, area, image_id), one in zip(
        product(params.catIds, params.areaRng, sort_ids(image_ids)), evaluator.evalImgs, strict=True
    ):
        if one is not None and area == params.areaRng[0]:  # of all sizes
            counts = ~one["dtIgnore"][0]  # at the first IoU, 0.5
            matches[image_id] += int((counts & (one["dtMatches"][0] > 0)).sum())
            detections[image_id] += int(counts.sum())
            objects[image_id] += int((one["gtIgnore"] == 0).sum())
    return {
        image_id: 2 * matches[image_id] / (objects[image_id] + detections[image_id])
        for image_id in image_ids
        if objects[image_id]
    }
