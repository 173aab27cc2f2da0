"""Every kind of finding on a broken copy of a real mini-COCO, and nothing on a sound one."""

import copy
import gzip
import json
import math
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gradaug_det.check_data.check import (
    check_before_training,
    check_coco,
    check_imagefolder,
    compare,
)
from gradaug_det.check_data.images import File, Names, check_image
from gradaug_det.check_data.kinds import KINDS, MAX_EXAMPLES, SEVERITIES
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.mini_coco import build_mini_coco

HEIGHT, WIDTH = 96, 128
EMPTY_SET = '{"images": [], "categories": []}'
BASELINE = {"category-without-instances", "image-without-annotations"}
DOCS = Path(__file__).parents[2] / "docs" / "check_data.md"
COVERED = set()
"""Kinds that a test of this module has found; the last test compares them with all."""


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """12 train and 2 val images."""
    out = tmp_path_factory.mktemp("check") / "coco"
    return build_mini_coco(out, train=12, val=2, seed=3, size=(HEIGHT, WIDTH))


@pytest.fixture(scope="module")
def document(coco):
    return json.loads((coco / "annotations" / "instances_train.json").read_text("utf-8"))


@pytest.fixture
def check(coco, document, tmp_path):
    """Checks a copy of the data set that ``edit(document, folder)`` has changed."""

    def run(edit, files=False, **options):
        changed, folder = copy.deepcopy(document), None
        if files:
            folder = tmp_path / "images"
            shutil.copytree(coco / "train", folder)
        edit(changed, folder)
        file = tmp_path / "instances.json"
        file.write_text(json.dumps(changed))
        return check_coco(file, folder, **options)

    return run


def found(result):
    return {finding.kind.name: finding for finding in result.findings}


def assert_found(result, kind, count, also=(), **example):
    """The kind with its count and an example that has these values; no other kinds but ``also``."""
    COVERED.add(kind)
    findings = found(result)
    assert kind in findings, findings.keys()
    assert findings.keys() - BASELINE - {kind} == set(also)
    assert findings[kind].count == count
    shown = findings[kind].examples[0]
    assert {key: shown.get(key) for key in example} == example


def objects(document):
    return [a for a in document["annotations"] if not a["iscrowd"]]


def named(annotation):
    return {"annotation_id": annotation["id"], "image_id": annotation["image_id"]}


def test_a_sound_build_has_neither_errors_nor_warnings(coco):
    for split in ("train", "val"):
        file = coco / "annotations" / f"instances_{split}.json"
        result = check_coco(file, coco / split, jobs=2, num_classes=10)
        assert result.at_least("warning") == []
        assert found(result).keys() <= BASELINE
    assert result.counts["images"] == 2


def test_run_lengths_of_a_sound_build_are_only_noted(mini_coco, tmp_path):
    mixed = build_mini_coco(tmp_path / "mixed", train=6, val=1, segmentation="mixed")
    for root, kinds in ((mini_coco, set()), (mixed, {"rle-instance"})):
        result = check_coco(root / "annotations" / "instances_train.json", root / "train")
        assert result.at_least("warning") == []
        assert found(result).keys() - BASELINE == kinds


# One annotation changed: kind -> (what is changed, other kinds that follow, values shown)
BROKEN_ANNOTATIONS = {
    "box-malformed": ({"bbox": [1, 2, "3", 4]}, (), {"bbox": [1, 2, "3", 4]}),
    "box-not-finite": ({"bbox": [1, 2, math.nan, 4]}, (), {"bbox": [1, 2, "nan", 4]}),
    "box-negative-size": ({"bbox": [60, 20, -30, 10]}, (), {"bbox": [60, 20, -30, 10]}),
    "box-zero-area": ({"bbox": [60, 20, 0, 10]}, (), {"bbox": [60, 20, 0, 10]}),
    "box-below-one-pixel": ({"bbox": [60, 20, 0.5, 10]}, ("box-differs-from-mask",), {}),
    "box-outside-image": (
        {"bbox": [WIDTH, 20, 30, 10]},
        ("box-differs-from-mask",),
        {"bbox": [WIDTH, 20, 30, 10], "width, height": [WIDTH, HEIGHT]},
    ),
    "box-partly-outside": ({"bbox": [-2, 0, WIDTH, HEIGHT]}, ("box-differs-from-mask",), {}),
    "area-missing": ({"area": "12"}, (), {"area": "12"}),
    "area-not-positive": ({"area": 0}, (), {"area": 0}),
    "iscrowd-invalid": ({"iscrowd": None}, (), {"iscrowd": None}),
    "iscrowd-with-polygon": ({"iscrowd": 1}, (), {}),
    "ignore-set": ({"ignore": 1}, (), {"ignore": 1}),
    "unknown-category": ({"category_id": 99}, (), {"category_id": 99}),
    "unknown-image": ({"image_id": 99}, (), {"image_id": 99}),
    "segmentation-missing": ({"segmentation": []}, (), {}),
    "segmentation-malformed": ({"segmentation": [1, 2, 3, 4, 5, 6]}, (), {}),
    "polygon-too-short": ({"segmentation": [[1, 2, 3, 4]]}, (), {"lengths": [4]}),
    "polygon-not-finite": ({"segmentation": [[math.nan, 2, 3, 4, 5, 6]]}, (), {}),
    "rle-wrong-size": (
        {"segmentation": {"size": [WIDTH, HEIGHT], "counts": [0, WIDTH * HEIGHT]}},
        ("rle-instance",),
        {"size": [WIDTH, HEIGHT], "expected": [HEIGHT, WIDTH]},
    ),
    "rle-unreadable": (
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [5, 20]}},
        ("rle-instance",),
        {"counts": [5, 20]},
    ),
    "rle-empty": (
        {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [WIDTH * HEIGHT]}},
        ("rle-instance",),
        {},
    ),
    "rle-instance": (
        {
            "bbox": [0, 0, WIDTH, HEIGHT],
            "segmentation": {"size": [HEIGHT, WIDTH], "counts": [0, WIDTH * HEIGHT]},
        },
        (),
        {},
    ),
    "annotation-id-zero": ({"id": 0}, (), {"annotation_id": 0}),
    "id-not-integer": ({"id": "7777"}, (), {"value": "7777"}),
    "annotation-id-text": ({"id": "seven"}, ("id-not-integer",), {"annotation_id": "seven"}),
    "image-id-differs": ({"image_id": "2"}, ("id-not-integer",), {"images_id": 2}),
    "wrong-type": ({"id": [7]}, (), {"value": [7]}),
}


@pytest.mark.parametrize("kind", BROKEN_ANNOTATIONS)
def test_one_broken_annotation(check, document, kind):
    changes, also, values = BROKEN_ANNOTATIONS[kind]
    target = objects(document)[4]

    def edit(changed, _):
        objects(changed)[4].update(changes)

    place = {} if kind in ("id-not-integer", "wrong-type") else named(target | changes)
    assert_found(check(edit), kind, 1, also, **(place | values))


def test_box_and_mask_that_disagree(check, document):
    """Width and height given as the far corner, the classic mistake."""
    x, y, w, h = objects(document)[4]["bbox"]

    def edit(changed, _):
        objects(changed)[4]["bbox"] = [x, y, x + w, y + h]

    result = check(edit)
    assert_found(
        result,
        "box-differs-from-mask",
        1,
        found(result).keys() & {"box-partly-outside"},
        **named(objects(document)[4]),
    )


@pytest.mark.parametrize(("shift", "seen"), [(1, False), (3, True)])
def test_a_polygon_over_the_edge(check, document, shift, seen):
    def edit(changed, _):
        target = objects(changed)[4]
        target["segmentation"] = [[0, 0, WIDTH + shift, 0, WIDTH + shift, 50, 0, 50]]
        target["bbox"] = [0, 0, WIDTH, 50]

    if seen:
        assert_found(check(edit), "polygon-outside", 1, **named(objects(document)[4]))
    else:
        assert found(check(edit)).keys() <= BASELINE


def test_compressed_run_lengths_that_pycocotools_would_misread(check, document):
    """Too many pixels, too few, and a string that ends within a number."""
    from pycocotools import mask as coco_mask

    def compressed(pixels):
        mask = np.ones((pixels, 1), np.uint8, order="F")
        return coco_mask.encode(mask)["counts"].decode()

    sound = compressed(HEIGHT * WIDTH)

    def with_counts(counts):
        def edit(changed, _):
            objects(changed)[4]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": counts}
            objects(changed)[4]["bbox"] = [0, 0, WIDTH, HEIGHT]

        return edit

    assert "rle-unreadable" not in found(check(with_counts(sound)))
    fewer, more = compressed(HEIGHT * WIDTH - 1), compressed(HEIGHT * WIDTH + 1)
    for counts in (fewer, more, sound[:-1] + "o", "", "é", "\ud800", "~~~"):
        result = check(with_counts(counts))
        assert_found(result, "rle-unreadable", 1, ("rle-instance",), **named(objects(document)[4]))


def test_boxes_only_leaves_masks_alone(check):
    def edit(changed, _):
        objects(changed)[0].update(segmentation="broken")
        objects(changed)[1].update(segmentation=[[math.nan] * 6])

    assert found(check(edit, masks=False)).keys() <= BASELINE
    assert {"segmentation-malformed", "polygon-not-finite"} <= found(check(edit)).keys()


def test_a_set_of_boxes_needs_no_masks(check):
    def edit(changed, _):
        for annotation in changed["annotations"]:
            del annotation["segmentation"]

    assert_found(check(edit), "no-segmentations", 1)


def drop(entry, key):
    del entry[key]


FILE_CASES = {
    "image without a width": (
        lambda d: drop(d["images"][2], "width"),
        ("missing-key", 1, (), {"list": "images", "position": 2, "lacks": "width"}),
    ),
    "annotation without a box": (
        lambda d: drop(d["annotations"][2], "bbox"),
        ("missing-key", 1, (), {"list": "annotations", "id": 3, "lacks": "bbox"}),
    ),
    "category without a name": (
        lambda d: drop(d["categories"][2], "name"),
        ("missing-key", 1, (), {"list": "categories", "position": 2}),
    ),
    "size of no pixel": (
        lambda d: d["images"][2].update(height=0),
        ("wrong-type", 1, (), {"key": "height", "value": 0}),
    ),
    "file name that is none": (
        lambda d: d["images"][2].update(file_name=7),
        ("wrong-type", 1, (), {"key": "file_name", "image_id": 3}),
    ),
    "entries that are no objects": (
        lambda d: d["annotations"].extend([None, 5]),
        ("wrong-type", 2, (), {"list": "annotations"}),
    ),
    "no categories": (
        lambda d: d.update(categories=[], annotations=[]),
        ("empty-list", 1, ("no-annotations",), {"key": "categories"}),
    ),
    "a test set": (lambda d: drop(d, "annotations"), ("no-annotations", 1, (), {})),
    "image ids twice": (
        lambda d: d["images"].append(d["images"][4] | {"file_name": "new.png"}),
        ("duplicate-image-id", 1, (), {"image_id": 5, "file_name": "new.png"}),
    ),
    "file names twice": (
        lambda d: d["images"].append(d["images"][4] | {"id": 77}),
        ("duplicate-file-name", 1, (), {"image_id": 77}),
    ),
    "annotation ids twice": (
        lambda d: d["annotations"][5].update(id=1),
        ("duplicate-annotation-id", 1, (), {"annotation_id": 1}),
    ),
    "category ids twice": (
        lambda d: d["categories"].append({"id": 1, "name": "again"}),
        ("duplicate-category-id", 1, (), {"category_id": 1, "name": "again"}),
    ),
    "category names twice": (
        lambda d: d["categories"].append({"id": 11, "name": d["categories"][0]["name"]}),
        ("duplicate-category-name", 1, (), {"category_id": 11}),
    ),
    "categories in another order": (
        lambda d: d["categories"].reverse(),
        ("categories-not-sorted", 1, (), {}),
    ),
    "texts among numbers": (
        lambda d: d["images"][11].update(id="12"),
        ("ids-mixed", 1, ("id-not-integer", "image-id-differs"), {"text": "12", "ids": 12}),
    ),
    "no iscrowd": (
        lambda d: [drop(a, "iscrowd") for a in objects(d)[:3]],
        ("iscrowd-missing", 3, (), {"annotation_id": 1}),
    ),
    "a gap between categories": (
        lambda d: d["categories"].append({"id": 13, "name": "Hat"}),
        ("non-contiguous-categories", 1, (), {}),
    ),
}


@pytest.mark.parametrize("case", FILE_CASES)
def test_the_file_as_a_whole(check, case):
    edit, (kind, count, also, example) = FILE_CASES[case]
    assert_found(check(lambda changed, _: edit(changed)), kind, count, also, **example)


def test_categories_against_the_model(check):
    def same(changed, _):
        pass

    assert_found(check(same, num_classes=9), "too-many-categories", 1, num_classes=9)
    assert_found(check(same, num_classes=80), "too-few-categories", 1, categories=10)


def one_class(*, boxes=((10, 10, 40, 50),) * 8, sides=(WIDTH, HEIGHT), masks=False, **values):
    """A file of 4 images of a class; a box may be given with its area."""
    images = [
        {"id": i, "file_name": f"{i}.png", "width": sides[0], "height": sides[1]} for i in range(4)
    ]
    annotations = []
    for number, (x, y, w, h, *area) in enumerate(boxes):
        annotation = {"id": number + 1, "image_id": number % 4, "category_id": 1, "iscrowd": 0}
        annotation |= {"bbox": [x, y, w, h], "area": area[0] if area else w * h}
        if masks:
            annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        annotations.append(annotation | values)
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "bolt"}],
    }


@pytest.fixture
def check_document(tmp_path):
    def run(document, **options):
        (tmp_path / "one.json").write_text(json.dumps(document))
        return check_coco(tmp_path / "one.json", None, **options)

    return run


NOTHING_LEFT = {
    "crowds": (one_class(iscrowd=1), *["8 x iscrowd is not 0, as it is"] * 2),
    "texts": (one_class(image_id="0"), *["8 x image_id is of no image"] * 2),
    "no area": (one_class(area=0), None, "8 x area is not positive"),
    "lines": (one_class(boxes=[(9, 9, 0, 9, 81)] * 8), *["8 x bbox is "] * 2),
    "thin": (one_class(boxes=[(9, 9, 0.5, 9)] * 8), None, "8 x bbox is below 1 pixel"),
    "outside": (one_class(boxes=[(500, 9, 9, 9)] * 8), *["8 x bbox is "] * 2),
    "ignored": (one_class(ignore=1), None, "8 x ignore is set"),
    "unknown class": (one_class(category_id=2), *["8 x category_id is of no category"] * 2),
    "points": (one_class(segmentation=[[1, 2, 3, 4]]), *["8 x no mask can be drawn"] * 2),
}


@pytest.mark.parametrize("case", NOTHING_LEFT)
def test_nothing_is_left_to_learn_from(check_document, case):
    """Each framework by its own rules, which tests/cross/test_check_data.py compares with it."""
    document, *causes = NOTHING_LEFT[case]
    COVERED.add("no-objects-left")
    shown = found(check_document(document))["no-objects-left"].examples
    expected = {n: c for n, c in zip(("Detectron2", "MMDetection"), causes, strict=True) if c}
    assert [example["framework"] for example in shown] == list(expected)
    for example in shown:
        assert (example["kept"], example["objects"]) == (0, 8)
        assert example["cause"].startswith(expected[example["framework"]])


def test_most_of_a_class_is_lost(check_document):
    document = one_class()
    document["categories"].append({"id": 2, "name": "nut"})
    for annotation in document["annotations"][:4]:
        annotation["category_id"] = 2
    for annotation in document["annotations"][:3]:
        annotation["iscrowd"] = 1
    values = {"framework": "Detectron2", "name": "nut", "kept": 1, "objects": 4}
    result = check_document(document)
    assert_found(result, "most-objects-lost", 2, ("no-segmentations",), **values)
    document["annotations"][2]["iscrowd"] = 0
    assert found(check_document(document)).keys() == {"no-segmentations"}


ROOMY = [(10, 12, 40, 50), (60, 20, 50, 60), (5, 40, 30, 20), (70, 50, 40, 40)]


def as_corners(x, y, w, h):
    return x, y, x + w, y + h


def as_centre(x, y, w, h):
    return x + w / 2, y + h / 2, w, h


FORMATS = {
    "x0, y0, x1, y1": [as_corners(*box) for box in ROOMY],
    "x0, y0, x1, y1, with area": [
        (*as_corners(*b), b[2] * b[3]) for b in [(20, 15, 20, 15), (40, 30, 20, 14)]
    ],
    "centre x, centre y, width, height": [as_centre(*box) for box in ROOMY],
    "y, x, height, width": [(y, x, h, w) for x, y, w, h in [*ROOMY, (90, 8, 35, 20)]],
    "y0, x0, y1, x1": [(y, x, y + h, x + w, w * h) for x, y, w, h in ROOMY],
    "x, y, width, height in percent": [
        (x / 1.28, y / 0.96, w / 1.28, h / 0.96, w * h) for x, y, w, h in ROOMY
    ],
    "x, y, width, height of an image of half the size": [
        (x / 2, y / 2, w / 2, h / 2, w * h) for x, y, w, h in ROOMY
    ],
    "x, y, width, height in thousandths": [
        (x / 0.128, y / 0.096, w / 0.128, h / 0.096) for x, y, w, h in ROOMY
    ],
    "x, y, width, height of a larger image": [(x * 3, y * 3, w * 3, h * 3) for x, y, w, h in ROOMY],
}


@pytest.mark.parametrize("case", FORMATS)
def test_boxes_in_another_format(check_document, case):
    COVERED.add("box-in-another-format")
    boxes = FORMATS[case] * (4 if len(FORMATS[case]) < 4 else 1)
    finding = found(check_document(one_class(boxes=boxes)))["box-in-another-format"]
    assert finding.examples[0]["looks_like"] == case.removesuffix(", with area")


def test_masks_prove_the_format(check_document):
    document = one_class(boxes=[(20, 15, 20, 15), (40, 30, 20, 14)] * 2, masks=True)
    assert check_document(document).findings == ()
    for annotation in document["annotations"]:
        annotation["bbox"] = list(as_corners(*annotation["bbox"]))
    values = {"looks_like": "x0, y0, x1, y1"}
    result = check_document(document)
    assert_found(result, "box-in-another-format", 1, ("box-differs-from-mask",), **values)


@pytest.mark.parametrize(
    "document",
    [
        one_class(boxes=ROOMY, masks=True),
        one_class(boxes=[(0, 0, WIDTH, HEIGHT)] * 8),  # as large as the image
        one_class(boxes=[(60, 40, 8, 8)] * 8),
        one_class(boxes=[(0.0, 0.0, 2.5, 1.5)] * 3 + [(50, 60, 30, 20)] * 3),
        one_class(boxes=[(*box, 7) for box in ROOMY * 2]),  # areas of masks that were left out
        one_class(boxes=[(3, 3, 2, 2), (5, 5, 90, 80)] * 8),
        one_class(boxes=[ROOMY[0]]),
        one_class(boxes=[(0, 0, WIDTH + 1, HEIGHT)] * 8),
        one_class(boxes=[(10, 10, 40, 30)] * 3),
        one_class(boxes=[(0.1, 0.1, 0.5, 0.5), *ROOMY * 2]),
    ],
)
def test_sound_boxes_raise_no_alarm(check_document, document):
    assert check_document(document).at_least("warning") == []


def test_boxes_of_smaller_images(check_document):
    """Nothing but the corner shows it: no masks, and areas of the boxes as they are."""
    boxes = [(x / 2, y / 2, w / 2, h / 2) for x, y, w, h in ROOMY * 2]
    result = check_document(one_class(boxes=boxes))
    assert_found(result, "boxes-in-corner", 1, ("no-segmentations",), boxes=8)
    masks = one_class(boxes=boxes, masks=True)
    assert_found(check_document(masks), "boxes-in-corner", 1)


def test_whole_objects_that_are_cut_are_no_other_format(check_document):
    boxes = [(100, 40, 40, 50), (-20, 10, 60, 40), (90, 60, 30, 60), *ROOMY] * 2
    result = check_document(one_class(boxes=boxes))
    assert_found(result, "box-partly-outside", 6, ("no-segmentations",))


@pytest.mark.parametrize("box", [(0.1, 0.1, 0.3, 0.5), (0.8, 0.7, 0.4, 0.4)])
@pytest.mark.parametrize("masks", [False, True])
def test_fractions(check_document, masks, box):
    document = one_class(boxes=[box] * 8)
    if masks:
        for annotation in document["annotations"]:
            annotation["segmentation"] = [[0.6, 0.5, 1, 0.5, 1, 0.9]]
    kinds = found(check_document(document))
    COVERED.add("not-in-pixels")
    assert kinds["not-in-pixels"].count == 1 + masks
    assert kinds["not-in-pixels"].examples[0]["share"] == "8 of 8"
    assert kinds["no-objects-left"].examples[0]["framework"] == "MMDetection"


def test_fractions_of_polygons_alone(check_document):
    document = one_class(segmentation=[[0.1, 0.1, 0.4, 0.1, 0.4, 0.6]])
    result = check_document(document)
    assert_found(
        result, "not-in-pixels", 1, ("box-differs-from-mask",), key="segmentation", share="8 of 8"
    )


def test_more_objects_than_are_counted(check_document):
    document = one_class(boxes=[(10, 10, 40, 50)] * 404)
    result = check_document(document)
    assert_found(result, "many-objects", 4, ("no-segmentations",), objects=101, counted=100)
    assert check_document(one_class(boxes=[(10, 10, 40, 50)] * 400)).at_least("note")[0].count == 1


SOUND_POINTS = [12, 12, 2, 48, 58, 2, 0, 0, 0]
KEYPOINTS = {
    "keypoints-malformed": ({"keypoints": [12, 12, 2]}, {"numbers": 3, "expected": 9}),
    "keypoints-malformed, text": ({"keypoints": "abc"}, {"expected": 9}),
    "keypoints-missing": ({"keypoints": []}, {}),
    "num-keypoints-missing": ({"num_keypoints": None}, {}),
    "num-keypoints-differs": ({"num_keypoints": 3}, {"says": 3, "labelled": 2}),
    "keypoint-visibility": ({"keypoints": [12, 12, 0.9, 48, 58, 2, 0, 0, 0]}, {}),
    "keypoints-outside-image": ({"keypoints": [12, 12, 2, 480, 58, 2, 0, 0, 0]}, {}),
    "keypoint-names-missing": ({"category_id": 2}, {}),
}


def with_keypoints(**changes):
    document = one_class(keypoints=SOUND_POINTS, num_keypoints=2)
    document["categories"] = [
        {"id": 1, "name": "bolt", "keypoints": ["head", "foot", "middle"]},
        {"id": 2, "name": "nut"},
    ]
    document["annotations"][3] |= changes
    return document


@pytest.mark.parametrize("case", KEYPOINTS)
def test_keypoints(check_document, case):
    changes, values = KEYPOINTS[case]
    kinds = found(check_document(with_keypoints()))
    assert kinds.keys() == {"no-segmentations", "category-without-instances"}
    others = kinds.keys() - ({"category-without-instances"} if "category_id" in changes else set())
    result = check_document(with_keypoints(**changes))
    kind = case.split(",")[0]
    assert_found(result, kind, 1, others - BASELINE, annotation_id=4, **values)


def test_keypoints_in_fractions(check_document):
    fractions = [0.1, 0.1, 2, 0.4, 0.6, 2, 0, 0, 0]
    document = with_keypoints()
    for annotation in document["annotations"]:
        annotation["keypoints"] = fractions
    assert found(check_document(document))["not-in-pixels"].examples[0]["key"] == "keypoints"


def test_notes_about_what_is_not_there(check, document):
    def edit(changed, _):
        changed["annotations"] = [a for a in changed["annotations"] if a["image_id"] == 1]

    result = check(edit)
    used = {a["category_id"] for a in document["annotations"] if a["image_id"] == 1}
    assert_found(result, "category-without-instances", 10 - len(used))
    assert_found(result, "image-without-annotations", 11, image_id=2)
    assert len(found(result)["image-without-annotations"].examples) == MAX_EXAMPLES
    assert result.at_least("warning") == []


def reencode(folder, changed, suffix, convert=lambda image: image, **options):
    """Replaces image 2 by another file that shows the same; returns its path."""
    old = folder / changed["images"][1]["file_name"]
    new = old.with_suffix(suffix)
    with Image.open(old) as image:
        convert(image).save(new, **options)
    changed["images"][1]["file_name"] = new.name
    return new


def exif(orientation):
    data = Image.Exif()
    data[274] = orientation
    return data


def _missing(changed, folder):
    (folder / changed["images"][1]["file_name"]).unlink()


def _text(changed, folder):
    (folder / changed["images"][1]["file_name"]).write_text("<html>not found</html>")


def _empty(changed, folder):
    (folder / changed["images"][1]["file_name"]).write_bytes(b"")


def _folder(changed, folder):
    _missing(changed, folder)
    (folder / changed["images"][1]["file_name"]).mkdir()


def _cut(suffix):
    def edit(changed, folder):
        path = reencode(folder, changed, suffix)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return edit


def _sixteen_bits(image):
    return Image.fromarray(np.asarray(image)[..., 0].astype(np.uint16) * 257)


def _transparent(image):
    image = image.convert("RGBA")
    image.putalpha(100)
    return image


def xmp(orientation):
    tiff = 'xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
    text = f'<rdf:Description {tiff} tiff:Orientation="{orientation}"/>'
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{text}</x:xmpmeta>'.encode()


def png_xmp(orientation):
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp(orientation).decode())
    return info


# Where the orientation stands -> what Detectron2 and MMDetection make of it, as
# tests/cross/test_check_data.py shows
ORIENTATIONS = {
    "jpeg": (".jpg", lambda o: {"exif": exif(o)}, "turns", "turns"),
    "png": (".png", lambda o: {"exif": exif(o)}, "turns", "turns"),
    "webp": (".webp", lambda o: {"exif": exif(o)}, "turns", "turns"),
    "jpeg xmp": (".jpg", lambda o: {"xmp": xmp(o)}, "turns", "stays"),
    "png xmp": (".png", lambda o: {"pnginfo": png_xmp(o)}, "turns", "stays"),
    "webp xmp": (".webp", lambda o: {"xmp": xmp(o)}, "turns", "stays"),
    "avif": (".avif", lambda o: {"exif": exif(o)}, "turns", "stays"),
    "tiff": (".tif", lambda o: {"tiffinfo": {274: o}}, "tiff", "turns"),
}


@pytest.mark.parametrize("container", ORIENTATIONS)
def test_orientation(tmp_path, container):
    """A size that is not square tells whether the annotations are of the turned image."""
    suffix, options, in_detectron2, in_mmdetection = ORIENTATIONS[container]
    COVERED.add("orientation-differs")
    views = {"turns": lambda o: o, "stays": lambda o: 1, "tiff": {5: 1, 6: 3, 7: 1, 8: 3}.get}
    for orientation in (1, 3, 6):
        path = tmp_path / f"{orientation}{suffix}"
        Image.new("RGB", (24, 16)).save(path, **options(orientation))
        for turned in {False, orientation >= 5}:
            size = (16, 24) if turned else (24, 16)
            for framework, view in (
                ("Detectron2", in_detectron2),
                ("MMDetection", in_mmdetection),
            ):
                problems = check_image(File(path, size, (framework,), {}))
                seen = 1 if orientation == 1 else views[view](orientation)
                kinds = {kind for kind, _ in problems} - {"image-format"}
                if orientation == 1:
                    assert kinds == set()
                elif orientation < 5:
                    assert kinds == {"exif-orientation"}
                elif seen == (orientation if turned else 1):
                    assert kinds == set()
                else:
                    wrong = "exif-rotated" if seen == orientation else "orientation-differs"
                    assert kinds == {wrong}, (framework, orientation, turned)
            problems = check_image(File(path, size, ("Detectron2", "MMDetection"), {}))
            differ = in_detectron2 != in_mmdetection and orientation > 1
            assert ("orientation-differs" in {kind for kind, _ in problems}) == differ


NAMES = {
    "images\\0.png": "it has backslashes; write /",
    "..\\..\\media\\upload\\4\\ab12cd34-0.png": "backslashes.*a prefix of Label Studio.*has 0.png",
    "/data/upload/4/ab12cd34-0.png": "a path of another machine.*a prefix of Label Studio",
    "C:\\Users\\me\\0.png": "backslashes; write /, it is a path of another machine",
    "/home/me/images/0.png": "it is a path of another machine.*has 0.png",
    "my%20picture.png": "it is URL-encoded; write it decoded; .*has my picture.png",
    "0.PNG": "upper and lower case differ; .*has 0.png",
    "images/0.png": "its folder is another one; .*has 0.png",
    "0.jpg": "it has another extension; .*has 0.png",
    "0": "it has another extension; .*has 0.png",
    "deep.png": "its folder is another one; .*has sub/deep.png",
    " 0.png": "it begins or ends with a space",
    "https://a.b/0.png": "an address, not a file.*has 0.png",
    "u\u0308ber.png": "accents are written in another form of Unicode; .*has \u00fcber.png",
    "gone.png": None,
}


def test_why_a_file_is_missing(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("0.png", "my picture.png", "\u00fcber.png", "sub/deep.png"):
        (tmp_path / name).touch()
    names = Names(tmp_path)
    for name, cause in NAMES.items():
        said = names.explain(name)
        assert said is None if cause is None else re.search(cause, said), (name, said)


IMAGE_CASES = {
    "missing": (_missing, "missing-image", True),
    "text": (_text, "unreadable-image", True),
    "empty": (_empty, "unreadable-image", True),
    "folder": (_folder, "unreadable-image", True),
    "png cut": (_cut(".png"), "truncated-image", False),
    "jpeg cut": (_cut(".jpg"), "truncated-image", False),
    "other size": (
        lambda c, f: reencode(f, c, ".png", lambda i: i.resize((50, 40))),
        "image-size-differs",
        True,
    ),
    "turned by exif": (
        lambda c, f: reencode(f, c, ".jpg", exif=exif(6)),
        "exif-rotated",
        True,
    ),
    "upside down by exif": (
        lambda c, f: reencode(f, c, ".jpg", exif=exif(3)),
        "exif-orientation",
        True,
    ),
    "16 bits": (lambda c, f: reencode(f, c, ".png", _sixteen_bits), "image-mode", True),
    "cmyk": (lambda c, f: reencode(f, c, ".jpg", lambda i: i.convert("CMYK")), "image-mode", True),
    "transparent": (lambda c, f: reencode(f, c, ".png", _transparent), "image-alpha", True),
    "tga": (lambda c, f: reencode(f, c, ".tga"), "image-format", True),
}


@pytest.mark.parametrize("case", IMAGE_CASES)
def test_one_broken_image(check, case):
    edit, kind, _ = IMAGE_CASES[case]
    result = check(edit, files=True)
    assert_found(result, kind, 1, image_id=2)
    assert found(result)[kind].examples[0]["file_name"].startswith("000000000002.")


@pytest.mark.parametrize("case", IMAGE_CASES)
def test_what_headers_show(check, case):
    edit, kind, in_header = IMAGE_CASES[case]
    result = check(edit, files=True, decode=False)
    assert (kind in found(result)) == in_header


def test_a_turned_image_with_the_turned_size_is_fine(check):
    def edit(changed, folder):
        reencode(folder, changed, ".jpg", lambda i: i.resize((HEIGHT, WIDTH)), exif=exif(6))

    assert found(check(edit, files=True)).keys() <= BASELINE


def test_grey_and_palette_images_are_fine(check):
    for mode in ("L", "P", "1"):
        edit = lambda c, f, m=mode: reencode(f, c, ".png", lambda i: i.convert(m))  # noqa: E731
        result = check(edit, files=True)
        assert found(result).keys() <= BASELINE
        shutil.rmtree(result.images)


def test_names_that_no_file_can_have(check):
    def edit(changed, _):
        for image, name in zip(
            changed["images"], ("a\0b", "x" * 5000, "\ud800", "\x1b[31m.png", ""), strict=False
        ):
            image["file_name"] = name

    result = check(edit, files=True)
    bad = sum(found(result)[k].count for k in ("missing-image", "unreadable-image"))
    assert bad == 5
    text = json.dumps(result.to_dict(), allow_nan=False, ensure_ascii=False)
    assert text.encode() and "\x1b" not in text


def test_everything_at_once(check, document):
    """Breakages in different places are all counted, errors first."""
    cases = [
        v[0] for k, v in BROKEN_ANNOTATIONS.items() if k not in ("unknown-image", "wrong-type")
    ]

    def edit(changed, folder):
        # The same objects again: the build has fewer than there are ways to break one.
        spare = copy.deepcopy(objects(document)[: len(cases)] * 3)[: len(cases)]
        for number, (annotation, changes) in enumerate(zip(spare, cases, strict=True)):
            changed["annotations"].append(annotation | {"id": 1000 + number} | changes)
        for image, break_image in zip(changed["images"], (_missing, _missing), strict=False):
            break_image({"images": [None, image]}, folder)

    result = check(edit, files=True, jobs=3)
    kinds = found(result)
    assert kinds.keys() >= BROKEN_ANNOTATIONS.keys() - {"unknown-image", "wrong-type"}
    assert kinds["missing-image"].count == 2
    assert kinds["rle-instance"].count == 4
    severities = [SEVERITIES.index(f.kind.severity) for f in result.findings]
    assert severities == sorted(severities)
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == result.to_dict()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is not valid JSON .*cut off"),
        (b'{"images": [', "is not valid JSON .*cut off"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (EMPTY_SET.encode("utf-8-sig"), r"UTF-8 with a byte order mark \(BOM\): save it"),
        (EMPTY_SET.encode("utf-16"), "its encoding is UTF-16: save it as UTF-8"),
        (EMPTY_SET.encode("utf-16-le"), "its encoding is UTF-16-LE: save it as UTF-8"),
        (EMPTY_SET.encode("utf-32"), "its encoding is UTF-32: save it as UTF-8"),
        (b'{"a": "\xe9"}', "is not UTF-8, but Latin-1 or another one: save it as UTF-8"),
        (b'{"a": 1}\n{"a": 2}\n', "is it JSON lines"),
        (b'{"a": 1}\n]', "something follows the JSON text"),
        (gzip.compress(b"{}", mtime=0), "packed with gzip: unpack it"),
        (b"PK\x03\x04...", "a zip archive: unpack it"),
        (b"\n<!DOCTYPE html>", "a page of HTML or XML"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"images": [' + b"9" * 5000 + b"]}", "is not valid JSON"),
        (b"[]", "holds a JSON list.*export it as COCO"),
        (b"{}", "'images' is missing.*export it as COCO"),
        (b'{"images": [], "categories": {}}', "'categories' is a dict, not a list"),
        (b'{"images": [], "categories": [], "annotations": null}', "'annotations' is a NoneType"),
    ],
)
def test_what_is_no_coco_file_is_one_sentence(tmp_path, content, sentence):
    (tmp_path / "file.json").write_bytes(content)
    with pytest.raises(DataError, match=sentence):
        check_coco(tmp_path / "file.json", None)


def test_missing_files_and_wrong_arguments(coco, tmp_path):
    file = coco / "annotations" / "instances_val.json"
    with pytest.raises(DataError, match=r"gone\.json is missing"):
        check_coco(tmp_path / "gone.json", None)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        check_coco(tmp_path, None)
    with pytest.raises(DataError, match=r"folder .*gone does not exist"):
        check_coco(file, tmp_path / "gone")
    with pytest.raises(ConfigError, match="jobs 0 is out of range"):
        check_coco(file, None, jobs=0)
    with pytest.raises(ConfigError, match="num_classes 0 is out of range"):
        check_coco(file, None, num_classes=0)


HOSTILE = [
    *(None, True, -1, 0, 10**400, 1e308, -0.0, math.nan, math.inf, "", "1", "\ud800", [], {}),
    *([[]], [[[]]], [None] * 4, [10**400] * 4, [1e308] * 4, [[1e308] * 6], [[10**400] * 8]),
    *({"size": [1, 1], "counts": [1]}, {"size": [], "counts": "o"}, {"size": [10**400] * 2}),
    *({"size": [HEIGHT, WIDTH], "counts": [10**400, 0.5]}, {"size": [-1, -1], "counts": "0"}),
    {"size": [HEIGHT, WIDTH], "counts": "PPPPPPP0"},
]


def mutate(value, rng):
    """The value with a random part replaced, removed, repeated or moved."""
    if isinstance(value, list | dict) and value and rng.random() < 0.92:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        action = rng.random()
        if action < 0.05:
            del value[key]
        elif action < 0.1 and isinstance(value, list):
            value.append(copy.deepcopy(value[key]))
        elif action < 0.15:
            other = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
            value[key] = copy.deepcopy(value[other])
        else:
            value[key] = mutate(value[key], rng)
        return value
    return copy.deepcopy(rng.choice(HOSTILE))


@pytest.mark.parametrize("seed", range(8))
def test_no_mutation_raises_anything_but_data_errors(coco, tmp_path, seed):
    rng = random.Random(seed)
    small = build_mini_coco(
        tmp_path / "s", train=3, val=1, seed=seed, size=(HEIGHT, WIDTH), segmentation="mixed"
    )
    sound = json.loads((small / "annotations" / "instances_train.json").read_text("utf-8"))
    file, checked, kinds = tmp_path / "mutant.json", 0, set()
    for _ in range(150):
        mutant = copy.deepcopy(sound)
        for _ in range(rng.randrange(1, 6)):
            mutant = mutate(mutant, rng)
        file.write_text(json.dumps(mutant))
        try:
            result = check_coco(file, small / "train", decode=False, num_classes=10)
        except DataError:
            continue
        checked += 1
        kinds |= found(result).keys()
        text = json.dumps(result.to_dict(), allow_nan=False, ensure_ascii=False)
        assert text.encode()
    assert checked > 75 and len(kinds) > 10


def test_class_folders(tmp_path, coco):
    images = sorted((coco / "train").iterdir())
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            shutil.copy(images[0], tmp_path / split / name / "0.PNG")
    result = check_imagefolder(tmp_path, jobs=2)
    assert result.findings == () and result.counts == {"images": 4, "classes": 2}
    assert check_imagefolder(tmp_path / "val").counts == {"images": 2, "classes": 2}

    (tmp_path / "val" / "fish").mkdir()
    (tmp_path / "train" / "cat" / "notes.txt").write_text("mine")
    (tmp_path / "train" / "dog" / "1.png").write_bytes(images[1].read_bytes()[:2000])
    result = check_imagefolder(tmp_path)
    others = {"class-sets-differ", "class-empty", "file-ignored", "truncated-image"}
    for kind, example in (
        ("class-empty", {"class_folder": "val/fish"}),
        ("class-sets-differ", {"split": "train", "has_no_class": "fish"}),
        ("file-ignored", {"file_name": "train/cat/notes.txt"}),
        ("truncated-image", {"file_name": "train/dog/1.png"}),
    ):
        assert_found(result, kind, 1, others - {kind}, **example)
    with pytest.raises(DataError, match="holds no class folder"):
        check_imagefolder(tmp_path / "val" / "cat")
    with pytest.raises(DataError, match="is no folder"):
        check_imagefolder(tmp_path / "gone")


def test_several_files_are_compared(coco, document, tmp_path):
    """By name at each index, of Detectron2 and of MMDetection; ids may be others."""

    def write(name, edit):
        changed = copy.deepcopy(document)
        edit(changed["categories"])
        changed["annotations"] = []
        (tmp_path / name).write_text(json.dumps(changed))
        return check_coco(tmp_path / name, None)

    first = check_coco(coco / "annotations" / "instances_train.json", None)
    later = write("later.json", lambda c: [one.update(id=one["id"] + 90) for one in c])
    other = write("other.json", lambda c: [one.update(id=20 - one["id"]) for one in c])
    moved = write("moved.json", lambda c: c.reverse())
    compared = compare([first, later, other, moved])
    kinds = [found(result) for result in compared]
    assert ["classes-differ" in of_file for of_file in kinds] == [False, False, True, True]
    COVERED.add("classes-differ")
    shown = [of_file["classes-differ"].examples[0] for of_file in kinds[2:]]
    assert [example["framework"] for example in shown] == ["Detectron2", "MMDetection"]
    assert re.search(r"'T-shirt/top' in .*train\.json and .* in .*other\.json", shown[0]["problem"])


SCORED = {
    "iscrowd-missing": lambda d: drop(d["annotations"][0], "iscrowd"),
    "iscrowd-invalid": lambda d: d["annotations"][0].update(iscrowd="0"),
    "annotation-id-text": lambda d: d["annotations"][0].update(id="seven"),
    "num-keypoints-missing": lambda d: drop(d["annotations"][0], "num_keypoints"),
}
LEARNED = {
    "no-annotations": lambda d: d.update(annotations=[]),
    "no-objects-left": lambda d: [a.update(iscrowd=1) for a in d["annotations"]],
}
ALWAYS = {
    "no-segmentations": lambda d: [drop(a, "segmentation") for a in d["annotations"]],
    "keypoints-missing": lambda d: drop(d["annotations"][0], "keypoints"),
    "keypoints-malformed": lambda d: d["annotations"][0].update(keypoints=[1, 2, 2]),
    "keypoint-names-missing": lambda d: drop(d["categories"][0], "keypoints"),
}


@pytest.mark.parametrize("kind", [*SCORED, *LEARNED, *ALWAYS])
def test_what_stops_training_and_what_stops_an_evaluation(tmp_path, kind):
    document = with_keypoints()
    for annotation in document["annotations"]:
        annotation["segmentation"] = [[10, 10, 50, 10, 50, 60, 10, 60]]
    file = tmp_path / "file.json"
    for trains in (True, False):
        file.write_text(json.dumps(document))
        check_before_training(file, name="set", keypoints=3, trains=trains)
    (SCORED | LEARNED | ALWAYS)[kind](document)
    file.write_text(json.dumps(document))
    for trains, kinds in ((True, LEARNED | ALWAYS), (False, SCORED | ALWAYS)):
        if kind in kinds:
            with pytest.raises(DataError, match=rf"^set: \d x {kind}: "):
                check_before_training(file, name="set", keypoints=3, trains=trains)
        else:
            check_before_training(file, name="set", keypoints=3, trains=trains)
    if kind in SCORED:
        with pytest.raises(DataError, match=rf"^set: \d x {kind}: "):
            check_before_training(file, name="set", keypoints=3, trains=True, scored=True)
    if "keypoint" in kind:  # a detector without them does not mind
        check_before_training(file, name="set")


def test_masks_that_a_detector_may_need(tmp_path):
    file = tmp_path / "file.json"
    file.write_text(json.dumps(one_class()))
    for masks in (None, False):
        check_before_training(file, name="set", masks=masks)
    file.write_text(json.dumps(one_class(segmentation="abc")))
    check_before_training(file, name="set", masks=False)
    with pytest.raises(DataError, match="segmentation-malformed"):
        check_before_training(file, name="set", masks=None)
    document = one_class(masks=True)
    del document["annotations"][0]["segmentation"]
    file.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"segmentation-missing.*; add it, or take out"):
        check_before_training(file, name="set")


def test_a_framework_is_checked_by_its_own_rules(tmp_path, caplog):
    file = tmp_path / "file.json"
    file.write_text(json.dumps(one_class(area=0, masks=True)))
    check_before_training(file, name="set", framework="Detectron2")
    with pytest.raises(DataError, match='0, objects 8, cause "8 x area is not positive"'):
        check_before_training(file, name="set", framework="MMDetection")
    caplog.clear()
    file.write_text(json.dumps(one_class(boxes=[(10, 10, 40, 50)] * 404, masks=True)))
    check_before_training(file, name="set")
    check_before_training(file, name="set", max_detections=101)
    assert caplog.text == ""
    check_before_training(file, name="set", max_detections=50)
    assert "set: 4 x many-objects: " in caplog.text and "counted 50" in caplog.text


def test_what_a_setting_refuses(tmp_path):
    file = tmp_path / "file.json"
    rle = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
    file.write_text(json.dumps(one_class(boxes=[(0, 0, WIDTH, HEIGHT)], segmentation=rle)))
    result = check_before_training(file, name="set")
    assert (result.classes, result.file_order, result.objects) == (
        ("bolt",),
        ("bolt",),
        {"bolt": 1},
    )
    with pytest.raises(DataError, match=r"1 x rle-instance: .*; set the format; to see all"):
        check_before_training(file, name="set", refused={"rle-instance": "set the format"})


def test_before_training(coco, document, tmp_path, caplog):
    file = tmp_path / "instances.json"
    changed = copy.deepcopy(document)
    objects(changed)[4].update(area=0)
    file.write_text(json.dumps(changed))
    check_before_training(file, coco / "train", name="set")
    assert "set: 1 x area-not-positive" in caplog.text and "check-data" in caplog.text

    objects(changed)[5].update(bbox=[5, 5, -1, 3])
    objects(changed)[6].update(ignore=1)
    file.write_text(json.dumps(changed))
    sentence = (
        rf"set: 1 x box-negative-size: .*annotation_id {objects(changed)[5]['id']}.*"
        rf"and 1 more kinds of error; to see all: gradaug-det check-data --annotations {file}"
    )
    with pytest.raises(DataError, match=sentence):
        check_before_training(file, coco / "train", name="set")
    objects(changed)[5].update(objects(document)[5])
    file.write_text(json.dumps(changed))
    with pytest.raises(DataError, match="ignore-set"):
        check_before_training(file, name="set")
    check_before_training(file, name="set", handled=("ignore-set",))

    changed["images"][3]["file_name"] = "gone.png"
    file.write_text(json.dumps(changed))
    with pytest.raises(DataError, match=r"1 x missing-image.*gone\.png.*--images"):
        check_before_training(file, coco / "train", name="set", handled=("ignore-set",))


def test_the_documentation_has_the_kinds(tmp_path):
    rows = [f"| `{kind.name}` | {' | '.join(kind[1:])} |" for kind in KINDS.values()]
    table = "\n".join(["|---|---|---|---|---|", *rows, ""])
    assert table in DOCS.read_text("utf-8"), f"put this into docs/check_data.md:\n{table}"


def test_every_kind_was_found_by_a_test():
    """Of this module, run as a whole."""
    if len(COVERED) < 10:
        pytest.skip("needs the other tests of this module")
    assert KINDS.keys() - COVERED == set()
