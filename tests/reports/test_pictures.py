"""Drawn pictures: the right colours at the right pixels."""

import numpy as np
import pytest
from PIL import Image

from gradaug_det.errors import DataError
from gradaug_det.reports.pictures import (
    Instance,
    category_colours,
    draw_instances,
    predicted_instances,
    read_image,
    truth_instances,
)
from tests.evaluation.helpers import CATEGORIES, ellipse, encode, run_lengths

GREY = (100, 100, 100)
COLOUR = (250, 30, 40)


def test_colours_are_distinct_and_belong_to_the_category():
    categories = [{"id": i, "name": str(i)} for i in range(80)]
    colours = category_colours(categories)
    assert len(set(colours.values())) == 80
    assert category_colours(categories[::-1]) == colours
    nearest = [
        min(np.abs(np.subtract(colours[i], colours[j])).sum() for j in range(10) if j != i)
        for i in range(10)
    ]
    assert min(nearest) > 40


@pytest.mark.parametrize(
    ("size", "drawn"),
    [
        ((256, 192), (512, 384)),
        ((64, 48), (256, 192)),
        ((640, 480), (640, 480)),
        ((1600, 800), (800, 400)),
    ],
)
def test_small_images_are_enlarged(size, drawn):
    assert draw_instances(Image.new("RGB", size), []).size == drawn


def test_box_and_mask_are_drawn_where_they_are():
    mask = np.zeros((192, 256), np.uint8)
    mask[60:100, 80:160] = 1
    shown = Instance([80, 60, 80, 40], "bag", COLOUR, encode(mask), 0.9)
    pixels = np.asarray(draw_instances(Image.new("RGB", (256, 192), GREY), [shown]))
    blended = 0.58 * np.array(GREY) + 0.42 * np.array(COLOUR)
    np.testing.assert_allclose(pixels[150, 240], blended, atol=1)  # inside the mask, at 2x
    np.testing.assert_array_equal(pixels[160, 160], COLOUR)  # left edge of the box
    np.testing.assert_array_equal(pixels[200, 239], COLOUR)  # bottom edge
    np.testing.assert_array_equal(pixels[300, 400], GREY)
    assert (pixels[100:118, 160:230] == COLOUR).all(axis=-1).mean() > 0.4  # label above the box


@pytest.mark.parametrize("kind", ["polygon", "counts", "rle"])
def test_every_kind_of_segmentation(kind):
    mask = ellipse(192, 256, [60.0, 50.0, 120.0, 90.0])
    angle = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    outline = np.stack([120 + 60 * np.cos(angle), 95 + 45 * np.sin(angle)], 1)
    segmentation = {
        "polygon": [outline.ravel().tolist()],
        "counts": {"size": [192, 256], "counts": run_lengths(mask)},
        "rle": encode(mask),
    }[kind]
    pixels = np.asarray(
        draw_instances(
            Image.new("RGB", (256, 192), GREY),
            [Instance([60, 50, 120, 90], "x", COLOUR, segmentation)],
        )
    )
    changed = (pixels != GREY).any(axis=-1).sum()
    assert changed == pytest.approx(4 * mask.sum(), rel=0.06)


def test_labels_stay_inside_and_apart():
    boxes = [[0, 0, 30, 20], [2, 1, 30, 20], [226, 172, 30, 20]]
    shown = [Instance(box, "ankle boot", COLOUR, score=0.5) for box in boxes]
    one = np.asarray(draw_instances(Image.new("RGB", (256, 192), GREY), shown[:1]))
    two = np.asarray(draw_instances(Image.new("RGB", (256, 192), GREY), shown[:2]))
    filled = [(p == COLOUR).all(axis=-1).sum() for p in (one, two)]
    assert filled[1] > 1.7 * filled[0]  # the second label does not lie on the first
    corner = np.asarray(draw_instances(Image.new("RGB", (256, 192), GREY), shown[2:]))
    label = (corner == COLOUR).all(axis=-1)
    assert label.sum() > 0.8 * filled[0]
    assert shown[0].label == "ankle boot 0.50"


def test_instances_of_an_image():
    truth = {
        "categories": CATEGORIES,
        "annotations": [
            {"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5], "iscrowd": 0},
            {"image_id": 1, "category_id": 4, "bbox": [1, 1, 5, 5], "iscrowd": 1},
            {"image_id": 2, "category_id": 4, "bbox": [1, 1, 5, 5]},
        ],
    }
    colours = category_colours(CATEGORIES)
    boot, crowd = truth_instances(truth, 1)
    assert (boot.label, boot.colour) == ("boot", colours[3])
    assert crowd.label == "bag (crowd)" and crowd.colour != colours[4]

    predictions = [
        {"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5], "score": score}
        for score in (0.2, 0.5, 0.9)
    ]
    found = predicted_instances(predictions, truth, 1, 0.5)
    assert [shown.label for shown in found] == ["boot 0.90", "boot 0.50"]
    assert {shown.colour for shown in found} == {colours[3]}
    assert predicted_instances(predictions, truth, 2, 0.5) == []
    assert len(predicted_instances(predictions * 20, truth, 1, 0.0)) == 30


def test_unreadable_images_are_named(tmp_path):
    with pytest.raises(DataError, match=r"5\.png does not exist; the folder of images"):
        read_image(tmp_path / "5.png")
    (tmp_path / "5.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"5\.png cannot be read"):
        read_image(tmp_path / "5.png")
