"""evaluate_coco: the same numbers as pycocotools, and a sentence where there can be none."""

import contextlib
import copy
import io
import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gradaug_det.errors import ConfigError, DataError
from gradaug_det.evaluation.coco import COCO_METRICS, evaluate_coco
from tests.evaluation.helpers import make_ground_truth, make_predictions, write_json


@pytest.fixture(scope="module")
def truth():
    return make_ground_truth()


@pytest.fixture(scope="module")
def predictions(truth):
    return make_predictions(truth)


def reference(truth: dict, predictions: list[dict], iou_type: str) -> tuple[np.ndarray, dict]:
    """pycocotools used as its own documentation does: twelve stats, and AP by category id."""
    predictions = copy.deepcopy(predictions)
    for prediction in predictions:
        prediction.pop("bbox" if iou_type == "segm" else "segmentation")
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = copy.deepcopy(truth)
        api.createIndex()
        evaluator = COCOeval(api, api.loadRes(predictions), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    by_category = {}
    for position, category in enumerate(evaluator.params.catIds):
        values = evaluator.eval["precision"][:, :, position, 0, -1]
        values = values[values > -1]
        by_category[category] = values.mean() if values.size else math.nan
    return evaluator.stats, by_category


@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_equals_pycocotools(truth, predictions, iou_type, backend):
    result = evaluate_coco(truth, predictions, [iou_type], backend=backend)[iou_type]
    stats, by_category = reference(truth, predictions, iou_type)

    assert list(result)[:12] == list(COCO_METRICS)
    np.testing.assert_allclose([result[m] for m in COCO_METRICS], stats * 100, atol=1e-6)
    for category in truth["categories"]:
        np.testing.assert_allclose(
            result[f"AP-{category['name']}"], by_category[category["id"]] * 100, atol=1e-6
        )
    # The set is hard enough that the numbers are all different: nothing is compared with itself.
    assert len({round(result[m], 3) for m in COCO_METRICS}) == 12
    assert 10 < result["AP"] < 90
    assert math.isnan(result["AP-never seen"])


def test_object_sizes_and_crowds_occur(truth, predictions):
    areas = np.array([a["area"] for a in truth["annotations"]])
    assert min((areas < 32**2).sum(), (areas > 96**2).sum()) > 20 and len(areas) > 300
    assert sum(a["iscrowd"] for a in truth["annotations"]) > 10
    used = {a["image_id"] for a in truth["annotations"]}
    assert len(used) < len(truth["images"])
    per_image = np.unique([p["image_id"] for p in predictions], return_counts=True)[1]
    assert per_image.max() > 100


def test_perfect_predictions_score_100():
    # Without crowds, whose uncompressed masks no detector can return.
    truth = make_ground_truth(seed=3, images=10)
    truth["annotations"] = [
        a for a in truth["annotations"] if isinstance(a["segmentation"], dict) and not a["iscrowd"]
    ]
    perfect = [{**a, "score": 0.9} for a in truth["annotations"]]
    result = evaluate_coco(truth, perfect)
    assert result["bbox"]["AP"] == pytest.approx(100)
    assert result["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("backend", ["faster", "pycocotools"])
def test_no_predictions_score_zero(truth, backend):
    result = evaluate_coco(truth, [], backend=backend)
    for iou_type in ("bbox", "segm"):
        assert [result[iou_type][m] for m in COCO_METRICS] == [0.0] * 12
        assert result[iou_type]["AP-shirt"] == 0.0
        assert math.isnan(result[iou_type]["AP-never seen"])


def test_nan_where_there_is_nothing_to_find(truth, predictions):
    small = copy.deepcopy(truth)
    small["annotations"] = [a for a in small["annotations"] if a["area"] < 32**2]
    result = evaluate_coco(small, predictions)
    assert math.isnan(result["bbox"]["APl"]) and math.isnan(result["segm"]["ARm"])
    assert result["bbox"]["APs"] > 0
    small["annotations"] = []
    assert all(math.isnan(value) for value in evaluate_coco(small, predictions)["bbox"].values())


def test_reads_files_and_api_objects_and_leaves_its_input_alone(truth, predictions, tmp_path):
    before = json.dumps([truth, predictions])
    expected = evaluate_coco(truth, predictions)
    assert json.dumps([truth, predictions]) == before

    truth_path = write_json(tmp_path / "truth.json", truth)
    predictions_path = write_json(tmp_path / "predictions.json", predictions)
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(str(truth_path))
    for source in (truth_path, str(truth_path), api):
        np.testing.assert_equal(evaluate_coco(source, predictions_path), expected)


def test_prints_nothing(truth, predictions, capsys):
    for backend in ("faster", "pycocotools"):
        evaluate_coco(truth, predictions[:50], backend=backend)
    assert capsys.readouterr().out == ""


def test_a_part_of_the_images(truth, predictions):
    ids = [image["id"] for image in truth["images"][:20]]
    part = {**truth, "annotations": [a for a in truth["annotations"] if a["image_id"] in ids]}
    part["images"] = truth["images"][:20]
    expected = evaluate_coco(part, [p for p in predictions if p["image_id"] in ids])
    np.testing.assert_equal(evaluate_coco(truth, predictions, image_ids=ids), expected)


def test_more_detections_per_image(truth, predictions):
    limited = evaluate_coco(truth, predictions, ["bbox"])["bbox"]
    result = evaluate_coco(truth, predictions, ["bbox"], max_detections=300)["bbox"]
    assert result["AR300"] > limited["AR100"]
    assert "AR100" not in result


@pytest.mark.parametrize("count, sigmas", [(17, None), (3, (0.1, 0.05, 0.2))])
def test_keypoints_with_their_own_sigmas(count, sigmas):
    rng = np.random.default_rng(0)
    truth = make_ground_truth(images=10)
    found = []
    for annotation in truth["annotations"]:
        x, y, width, height = annotation["bbox"]
        points = np.array([x, y, 0]) + rng.uniform(size=(count, 3)) * [width, height, 0]
        points[:, 2] = rng.integers(0, 3, count)
        annotation["keypoints"] = points.ravel().tolist()
        annotation["num_keypoints"] = int((points[:, 2] > 0).sum())
        points[:, :2] += rng.normal(0, 0.05 * width, (count, 2))
        score = {"score": rng.uniform(), "keypoints": points.ravel().tolist()}
        found.append({k: annotation[k] for k in ("image_id", "category_id")} | score)
    results = {
        backend: evaluate_coco(truth, found, ["keypoints"], backend=backend, sigmas=sigmas)
        for backend in ("faster", "pycocotools")
    }
    measured, other = (results[backend]["keypoints"] for backend in ("faster", "pycocotools"))
    assert measured == pytest.approx(other, nan_ok=True)
    assert 10 < measured["AP"] < 95 and "APs" not in measured and measured["AR20"] > 0
    if sigmas is None:  # COCO's own, as pycocotools' documentation has them scored
        with contextlib.redirect_stdout(io.StringIO()):
            api = COCO()
            api.dataset = copy.deepcopy(truth)
            api.createIndex()
            evaluator = COCOeval(api, api.loadRes(copy.deepcopy(found)), "keypoints")
            evaluator.evaluate()
            evaluator.accumulate()
            evaluator.summarize()
        assert measured["AP"] == pytest.approx(100 * evaluator.stats[0])
    with pytest.raises(ConfigError, match=f"sigmas must be {count} numbers"):
        evaluate_coco(truth, found, ["keypoints"], sigmas=(0.1, 0.1))
    # Objects without keypoints are no miss.
    truth["annotations"].append(dict(truth["annotations"][0], id=10**6, iscrowd=0))
    for key in ("keypoints", "num_keypoints"):
        del truth["annotations"][-1][key]
    again = evaluate_coco(truth, found, ["keypoints"], sigmas=sigmas)["keypoints"]
    assert again["AR20"] == measured["AR20"]
    found[0]["keypoints"] = found[0]["keypoints"][:-1]
    with pytest.raises(DataError, match=f"no {3 * count} finite numbers, x, y, v"):
        evaluate_coco(truth, found, ["keypoints"], sigmas=sigmas)


@pytest.mark.parametrize("spell", [lambda i: i - 1000, float, "{:09}".format, (2**60).__add__])
def test_how_ids_are_spelled_changes_no_number(truth, predictions, spell):
    few = [image["id"] for image in truth["images"][:5]]
    part = [one for one in truth["annotations"] if one["image_id"] in few]
    found = [one for one in predictions if one["image_id"] in few]
    other = {
        **truth,
        "images": [{**image, "id": spell(image["id"])} for image in truth["images"]],
        "annotations": [
            {**one, "id": spell(one["id"]), "image_id": spell(one["image_id"])} for one in part
        ],
    }
    respelled = [{**one, "image_id": spell(one["image_id"])} for one in found]
    np.testing.assert_equal(
        evaluate_coco(other, respelled, image_ids=list(map(spell, few))),
        evaluate_coco({**truth, "annotations": part}, found, image_ids=few),
    )


def test_annotation_id_zero_is_not_a_miss(truth, predictions):
    """pycocotools itself takes an object with id 0 for unmatched; its number must not change."""
    shifted = copy.deepcopy(truth)
    for annotation in shifted["annotations"]:
        annotation["id"] -= 1
    np.testing.assert_equal(evaluate_coco(shifted, predictions), evaluate_coco(truth, predictions))


def broken(predictions: list[dict], **changes) -> list[dict]:
    return [predictions[0], {**predictions[1], **changes}, *predictions[2:]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": 999}, r"1 image ids .* does not have: 999"),
        ({"image_id": "1"}, r"1 image ids .* does not have: '1'"),
        ({"category_id": 0}, r"category ids .* 0; it has 1, 3, 4, 9, 12, 13"),
        ({"score": math.nan}, r"^1 of \d+ predictions have scores .* \(first image id: {image}\)"),
        ({"bbox": [1, 2, math.nan, 4]}, r"^1 of \d+ predictions have boxes .*image id: {image}\)"),
        ({"bbox": [1, 2, 3]}, r"boxes that are not finite"),
        ({"bbox": None}, r"have no 'bbox'.*leave 'bbox' out of iou_types"),
        ({"segmentation": None}, r"have no 'segmentation'.*leave 'segm' out of iou_types"),
        ({"segmentation": {"size": [7, 9], "counts": "0"}}, r"size \[7, 9\], the image has \[2"),
        ({"segmentation": [[1, 1, 5, 1, 5, 5]]}, r"image {image} is no compressed RLE"),
    ],
)
def test_unusable_predictions_are_named(truth, predictions, changes, message):
    message = message.replace("{image}", str(predictions[1]["image_id"]))
    with pytest.raises(DataError, match=message):
        evaluate_coco(truth, broken(predictions, **changes))


def test_unusable_ground_truth_is_named(truth, predictions, tmp_path):
    test_set = {k: v for k, v in truth.items() if k != "annotations"}
    with pytest.raises(DataError, match="no 'annotations': it cannot be scored"):
        evaluate_coco(test_set, predictions)
    with pytest.raises(DataError, match=r"annotation id 1$"):
        evaluate_coco({**truth, "annotations": truth["annotations"][:1] * 2}, predictions)
    no_area = [{k: v for k, v in a.items() if k != "area"} for a in truth["annotations"]]
    with pytest.raises(DataError, match="annotation 1 has no 'area'"):
        evaluate_coco({**truth, "annotations": no_area}, predictions)
    boxes = [{k: v for k, v in a.items() if k != "segmentation"} for a in truth["annotations"]]
    with pytest.raises(DataError, match="annotation 1 has no segmentation; leave 'segm' out"):
        evaluate_coco({**truth, "annotations": boxes}, predictions)
    no_size = [{"id": image["id"]} for image in truth["images"]]
    with pytest.raises(DataError, match="image 5 has no height and width"):
        evaluate_coco({**truth, "images": no_size}, predictions, ["segm"])
    assert evaluate_coco({**truth, "images": no_size}, predictions, ["bbox"])["bbox"]["AP"] > 0
    with pytest.raises(DataError, match="is missing"):
        evaluate_coco(tmp_path / "nowhere.json", predictions)
    (tmp_path / "cut.json").write_text('{"images": [')
    with pytest.raises(DataError, match="cut off"):
        evaluate_coco(tmp_path / "cut.json", predictions)
    for content in ({"bbox": []}, ""):
        with pytest.raises(DataError, match="result format"):
            evaluate_coco(truth, write_json(tmp_path / "object.json", content))


def test_unknown_settings_are_named(truth):
    with pytest.raises(ConfigError, match="choose one of"):
        evaluate_coco(truth, [], backend="cpp")
    for iou_types in ("bbox", ["boxes"]):
        with pytest.raises(ConfigError, match="not understood"):
            evaluate_coco(truth, [], iou_types)
    with pytest.raises(ConfigError, match="use 10 or more"):
        evaluate_coco(truth, [], max_detections=5)
