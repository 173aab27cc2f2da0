"""The evaluators' benchmark: its data look like COCO's, its numbers are the two evaluators'."""

import json

import pycocotools.mask
import pytest

from benchmarks.evaluation import (
    CATEGORIES,
    DETECTIONS,
    OBJECTS,
    measure_evaluation,
    synthetic_results,
    write_evaluation_speed,
)
from gradaug_det.evaluation.coco import evaluate_coco


@pytest.fixture(scope="module")
def data():
    return synthetic_results(60, seed=3)


def test_counts_are_those_of_coco_and_the_seed_decides(data):
    truth, results = data
    assert synthetic_results(60, seed=3) == data
    assert synthetic_results(60, seed=4) != data
    assert len(truth["annotations"]) / 60 == pytest.approx(OBJECTS, rel=0.15)
    assert len(results) / 60 == pytest.approx(DETECTIONS, rel=0.15)
    assert {a["category_id"] for a in truth["annotations"]} <= set(range(1, CATEGORIES + 1))


def test_masks_fill_their_boxes_and_detections_are_good_and_bad(data):
    truth, results = data
    for result in results[:50]:
        x, y, width, height = pycocotools.mask.toBbox(result["segmentation"])
        assert [x, y, x + width, y + height] == pytest.approx(
            [
                *result["bbox"][:2],
                result["bbox"][0] + result["bbox"][2],
                result["bbox"][1] + result["bbox"][3],
            ],
            abs=2.0,
        )
    metrics = evaluate_coco(truth, results)
    for task in ("bbox", "segm"):
        assert 10 < metrics[task]["AP50"] < 90


def test_both_evaluators_are_timed_and_agree(tmp_path):
    content = measure_evaluation(tmp_path, images=20, rounds=2)
    assert list(content["tasks"]) == ["boxes", "masks", "both"]
    for measured in content["tasks"].values():
        assert measured["ratio"] > 0 and measured["wall_ratio"] > 0
        assert measured["largest_difference"] < 1e-9
    text = write_evaluation_speed(content, tmp_path / "out", "the command").read_text()
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written["tasks"] == content["tasks"] and written["command"] == "the command"
    assert f"| boxes | {content['tasks']['boxes']['ratio']:.2f} |" in text
