"""A made-up benchmark of two detectors, and its report."""

import pytest

from gradaug_det.benchmark.records import Benchmark, Cost, DetectorResult, WidthResult
from gradaug_det.benchmark.report import write_benchmark
from gradaug_det.evaluation.coco import evaluate_coco
from gradaug_det.evaluation.coco_data import CocoData
from tests.evaluation.helpers import (
    make_ground_truth,
    make_predictions,
    write_images,
    write_json,
)

HOSTILE = 'x<script>alert("1")</script>|y'


@pytest.fixture(scope="session")
def truth():
    return make_ground_truth(images=20)


@pytest.fixture(scope="session")
def folder(truth, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    write_json(folder / "truth.json", truth)
    write_images(truth, folder / "images")
    return folder


def width_result(truth, width, seed, noise, **more):
    predictions = make_predictions(truth, seed=seed, noise=noise)
    cost = Cost(int(1000 * width), 3.0 * width**2, 20.0 * width, 500.0 * width)
    return WidthResult(width, evaluate_coco(truth, predictions), predictions, cost, **more)


@pytest.fixture(scope="session")
def benchmark(truth, folder):
    robust = {
        "corruptions": {
            "fog": {1: {"bbox": 20.0, "segm": 10.0}, 5: {"bbox": 10.0, "segm": 6.0}},
            "snow": {1: {"bbox": 16.0, "segm": 8.0}, 5: {"bbox": 2.0, "segm": 0.0}},
        },
        "fgsm": {1.0: {"bbox": 9.0, "segm": 7.0}, 4.0: {"bbox": 1.5, "segm": 0.5}},
    }
    return Benchmark(
        title="Benchmark",
        detectors=[
            DetectorResult(
                "plain",
                "Detectron2",
                "a.yaml",
                "a.pth",
                [
                    width_result(truth, 1.0, 1, 0.05, **robust),
                    width_result(truth, 0.9, 1, 0.09),
                ],
            ),
            DetectorResult(
                HOSTILE, "MMDetection", "b.py", "b.pth", [width_result(truth, 1.0, 3, 0.03)]
            ),
        ],
        data=CocoData.read(folder / "truth.json", folder / "images", "made up"),
        image_ids=[image["id"] for image in truth["images"]],
        environment={"cpu": "a CPU", "cores": 2, "versions": {"torch": "2"}},
        command="gradaug-det benchmark --config a.yaml",
        num_pictures=2,
    )


@pytest.fixture(scope="session")
def written(benchmark, tmp_path_factory):
    return write_benchmark(tmp_path_factory.mktemp("report"), benchmark).parent
