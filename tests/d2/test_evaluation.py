"""FasterCOCOEvaluator against Detectron2's own evaluator on the same model outputs."""

import json
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.config import LazyCall
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator, PascalVOCDetectionEvaluator, SemSegEvaluator
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from omegaconf import OmegaConf

from gradaug_det.d2.data import register_coco
from gradaug_det.d2.evaluation import (
    FasterCOCOEvaluator,
    build_evaluator,
    build_lazy_evaluator,
    detections_per_image,
    read_scoring,
)
from gradaug_det.errors import DataError
from tests.d2.dataset import annotation, write_coco
from tests.d2.helpers import tiny_cfg, tiny_model
from tests.evaluation.helpers import make_ground_truth, make_predictions, write_json

NAME = "gradaug_test_evaluation"


@pytest.fixture(scope="module")
def truth():
    return make_ground_truth(images=40)


@pytest.fixture(scope="module")
def dataset(truth, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    register_coco_instances(NAME, {}, str(write_json(folder / "truth.json", truth)), str(folder))
    DatasetCatalog.get(NAME)  # fills in the category names and their ids
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


@pytest.fixture(scope="module")
def model_outputs(truth, dataset):
    """(inputs, outputs) a Detectron2 model would give to ``process``, one image a batch."""
    to_index = MetadataCatalog.get(dataset).thing_dataset_id_to_contiguous_id
    predictions = make_predictions(truth)
    batches = []
    for image in truth["images"]:
        found = [p for p in predictions if p["image_id"] == image["id"]]
        instances = Instances((image["height"], image["width"]))
        xywh = torch.tensor([p["bbox"] for p in found], dtype=torch.float32).reshape(-1, 4)
        instances.pred_boxes = Boxes(torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1))
        instances.scores = torch.tensor([p["score"] for p in found], dtype=torch.float32)
        instances.pred_classes = torch.tensor(
            [to_index[p["category_id"]] for p in found], dtype=torch.int64
        )
        masks = [torch.from_numpy(mask_util.decode(p["segmentation"])).bool() for p in found]
        empty = torch.zeros(0, image["height"], image["width"], dtype=torch.bool)
        instances.pred_masks = torch.stack(masks) if masks else empty
        batches.append(([{"image_id": image["id"]}], [{"instances": instances}]))
    return batches


def evaluate(evaluator_type, name, batches, output_dir=None, img_ids=None, **arguments):
    evaluator = evaluator_type(name, output_dir=output_dir and str(output_dir), **arguments)
    evaluator.reset()
    for inputs, outputs in batches:
        evaluator.process(inputs, outputs)
    return evaluator.evaluate(img_ids=img_ids)


def assert_same(result: dict, expected: dict) -> None:
    assert list(result) == list(expected)
    for task, metrics in expected.items():
        assert list(result[task]) == list(metrics)
        np.testing.assert_allclose(
            list(result[task].values()), list(metrics.values()), atol=1e-6, equal_nan=True
        )


@pytest.mark.parametrize("distributed", [True, False])
def test_equals_detectron2(dataset, model_outputs, tmp_path, distributed):
    arguments = {"distributed": distributed, "tasks": ("bbox", "segm")}
    result = evaluate(FasterCOCOEvaluator, dataset, model_outputs, tmp_path / "faster", **arguments)
    expected = evaluate(
        COCOEvaluator, dataset, model_outputs, tmp_path / "own", use_fast_impl=False, **arguments
    )
    assert_same(result, expected)
    assert list(result) == ["bbox", "segm"]
    assert 10 < result["segm"]["AP"] < result["bbox"]["AP"] < 90
    assert 10 < result["bbox"]["AP-boot"] < 90 and math.isnan(result["bbox"]["AP-never seen"])

    written = [
        json.loads((tmp_path / folder / "coco_instances_results.json").read_text())
        for folder in ("faster", "own")
    ]
    assert written[0] == written[1] and len(written[0]) > 300
    assert {p["category_id"] for p in written[0]} <= {1, 3, 4, 9, 12, 13}


def test_tasks_are_inferred(dataset, model_outputs):
    boxes_only = []
    for inputs, outputs in model_outputs:
        instances = outputs[0]["instances"]
        stripped = Instances(instances.image_size, **instances.get_fields())
        stripped.remove("pred_masks")
        boxes_only.append((inputs, [{"instances": stripped}]))
    assert list(evaluate(FasterCOCOEvaluator, dataset, boxes_only)) == ["bbox"]
    assert list(evaluate(FasterCOCOEvaluator, dataset, model_outputs)) == ["bbox", "segm"]


def test_a_part_of_the_images_and_more_detections(dataset, truth, model_outputs):
    ids = [image["id"] for image in truth["images"][5:25]]
    as_list = evaluate(FasterCOCOEvaluator, dataset, model_outputs, max_dets_per_image=[1, 10, 300])
    assert_same(
        as_list, evaluate(FasterCOCOEvaluator, dataset, model_outputs, max_dets_per_image=300)
    )
    for arguments in ({"img_ids": ids}, {"max_dets_per_image": 300}, {"max_dets_per_image": 20}):
        result = evaluate(FasterCOCOEvaluator, dataset, model_outputs, **arguments)
        own = {"use_fast_impl": False, **arguments}
        assert_same(result, evaluate(COCOEvaluator, dataset, model_outputs, **own))


def test_nothing_detected_is_detectron2s_answer(dataset, model_outputs):
    nothing = [
        (inputs, [{"instances": outputs[0]["instances"][:0]}]) for inputs, outputs in model_outputs
    ]
    result = evaluate(FasterCOCOEvaluator, dataset, nothing)
    assert_same(result, evaluate(COCOEvaluator, dataset, nothing))
    assert math.isnan(result["bbox"]["AP"])
    assert evaluate(FasterCOCOEvaluator, dataset, []) == {}


def test_a_diverged_or_mismatched_model_is_named(dataset, model_outputs):
    inputs, outputs = next(b for b in model_outputs if len(b[1][0]["instances"]))
    instances = outputs[0]["instances"][:1]

    wrong_class = Instances(instances.image_size, **instances.get_fields())
    wrong_class.pred_classes = torch.tensor([80])
    with pytest.raises(DataError, match=r"predicted class 80, .* only the classes 0 to 5.*NUM_CL"):
        evaluate(FasterCOCOEvaluator, dataset, [(inputs, [{"instances": wrong_class}])])

    nan = Instances(instances.image_size, **instances.get_fields())
    nan.pred_boxes = Boxes(torch.tensor([[0.0, 0.0, math.nan, 5.0]]))
    with pytest.raises(DataError, match=f"1 of 1 .* boxes .*image id: {inputs[0]['image_id']}"):
        evaluate(FasterCOCOEvaluator, dataset, [(inputs, [{"instances": nan}])])


def test_a_test_set_without_annotations_only_writes_results(truth, model_outputs, tmp_path):
    path = write_json(
        tmp_path / "test.json", {k: v for k, v in truth.items() if k != "annotations"}
    )
    name = f"{NAME}_test_set"
    MetadataCatalog.get(name).json_file = str(path)
    try:
        assert evaluate(FasterCOCOEvaluator, name, model_outputs, tmp_path) == {}
        written = json.loads((tmp_path / "coco_instances_results.json").read_text())
        assert len(written) == sum(len(o[0]["instances"]) for _, o in model_outputs)
    finally:
        MetadataCatalog.remove(name)


@pytest.fixture
def crowded(tmp_path):
    """150 objects of three keypoints on one image, registered, and what finds them all."""
    boxes = [annotation(2 + 12 * (i % 10), 1 + 6 * (i // 10), 9, 5) for i in range(150)]
    points = [[x + 1, y + 1, 2, x + 4, y + 2, 2, x + 8, y + 4, 1] for x, y, *_ in
              (box["bbox"] for box in boxes)]  # fmt: skip
    for box, keypoints in zip(boxes, points, strict=True):
        box |= {"keypoints": keypoints, "num_keypoints": 3}
    file, images = write_coco(tmp_path / "crowded", [boxes], classes=1)
    document = json.loads(file.read_text())
    document["categories"][0] |= {"keypoints": ["a", "left b", "right b"], "skeleton": []}
    file.write_text(json.dumps(document))
    register_coco("crowded", file, images)
    (record,) = DatasetCatalog.get("crowded")
    found = Instances((record["height"], record["width"]))
    xywh = torch.tensor([box["bbox"] for box in boxes], dtype=torch.float32)
    found.pred_boxes = Boxes(torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1))
    found.scores = torch.linspace(0.5, 1, 150)
    found.pred_classes = torch.zeros(150, dtype=torch.int64)
    found.pred_keypoints = torch.tensor(
        [a["keypoints"] for a in record["annotations"]], dtype=torch.float32
    ).reshape(150, 3, 3)
    yield [({"image_id": record["image_id"]}, {"instances": found})]
    DatasetCatalog.remove("crowded")
    MetadataCatalog.remove("crowded")


def score(evaluator, batches):
    evaluator.reset()
    for inputs, outputs in batches:
        instances = outputs["instances"]
        copied = Instances(instances.image_size, **instances.get_fields())
        if copied.has("pred_keypoints"):  # which the evaluator changes
            copied.pred_keypoints = copied.pred_keypoints.clone()
        evaluator.process([inputs], [{"instances": copied}])
    return evaluator.evaluate()


def test_a_configs_settings_reach_its_evaluator(crowded, tmp_path):
    cfg = tiny_cfg("faster_rcnn")
    cfg.OUTPUT_DIR = str(tmp_path)
    assert read_scoring(cfg).tasks == ("bbox",)
    assert score(build_evaluator(cfg, "crowded"), crowded)["bbox"]["AP"] < 70
    cfg.TEST.DETECTIONS_PER_IMAGE = 200
    cfg.MODEL.KEYPOINT_ON, cfg.TEST.KEYPOINT_OKS_SIGMAS = True, [0.05, 0.05, 0.05]
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 3
    result = score(build_evaluator(cfg, "crowded"), crowded)
    assert set(result) == {"bbox", "keypoints"}
    assert result["bbox"]["AP"] == pytest.approx(100)
    found = read_scoring(cfg)
    assert (found.tasks, found.max_detections) == (("bbox", "keypoints"), 200)
    assert found.sigmas == (0.05, 0.05, 0.05)
    for limit, counted in ((5, 100), (-1, 10_000)):
        cfg.TEST.DETECTIONS_PER_IMAGE = limit
        assert read_scoring(cfg).max_detections == counted


def test_perfect_keypoints_score_100_as_detectron2_scores_them(crowded):
    (inputs, outputs), = crowded  # fmt: skip
    few = [(inputs, {"instances": outputs["instances"][:15]})]
    sigmas = {"kpt_oks_sigmas": (0.05, 0.1, 0.05), "tasks": ("keypoints",)}
    ours, theirs = (score(kind("crowded", **sigmas), few) for kind in
                    (FasterCOCOEvaluator, COCOEvaluator))  # fmt: skip
    assert_same(ours, theirs)
    evaluator = FasterCOCOEvaluator("crowded", **sigmas)
    evaluator._coco_api.dataset["annotations"] = evaluator._coco_api.dataset["annotations"][:15]
    assert score(evaluator, few)["keypoints"]["AP"] == pytest.approx(100)


def test_the_evaluator_is_of_the_datasets_kind(tmp_path):
    cfg = tiny_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    kinds = {"pascal_voc": PascalVOCDetectionEvaluator, "sem_seg": SemSegEvaluator}
    shared = {"stuff_classes": ["a"], "ignore_label": 255, "dirname": "x", "split": "y", "year": 1}
    for kind, evaluator in kinds.items():
        name = f"of_kind_{kind}"
        DatasetCatalog.register(name, list)
        MetadataCatalog.get(name).set(
            evaluator_type=kind, thing_classes=["a"], year=2007, **{
                k: v for k, v in shared.items() if k != "year"
            }
        )  # fmt: skip
        try:
            assert type(build_evaluator(cfg, name)) is evaluator
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_a_lazy_evaluator_counts_what_the_detector_gives(dataset):
    cfg = tiny_cfg()
    cfg.TEST.DETECTIONS_PER_IMAGE = 250
    model = build_model(cfg)
    assert detections_per_image(model) == 250
    assert detections_per_image(tiny_model("retinanet")) == 100

    def limit(**arguments):
        node = LazyCall(FasterCOCOEvaluator)(dataset_name=dataset, **arguments)
        lazy = OmegaConf.create({"dataloader": {"evaluator": node}}, flags={"allow_objects": True})
        return build_lazy_evaluator(lazy, model)._max_dets_per_image[-1]

    assert limit() == 250
    assert limit(max_dets_per_image=120) == limit(max_dets_per_image=[1, 10, 120]) == 120
