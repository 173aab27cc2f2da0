import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from gradaug_det.errors import ConfigError, DataError
from gradaug_det.mini_coco import CLASS_NAMES, build_mini_coco, load_garments
from tests.mini_coco.helpers import hashes, read_split, write_fake_fashion_mnist

SMALL, MEDIUM = 32**2, 96**2


def open_coco(root, split):
    return COCO(root / "annotations" / f"instances_{split}.json")


def ordinary(content):
    return [a for a in content["annotations"] if not a["iscrowd"]]


def test_same_seed_is_bit_identical_and_another_seed_is_not(tmp_path):
    small = {"train": 3, "val": 2, "size": (96, 128)}
    first = hashes(build_mini_coco(tmp_path / "first", seed=5, **small))
    assert first == hashes(build_mini_coco(tmp_path / "second", seed=5, **small))
    other = hashes(build_mini_coco(tmp_path / "other", seed=6, **small))
    assert first.keys() == other.keys()
    assert not {n for n in first if n.endswith(".png") and first[n] == other[n]}


def test_processes_do_not_change_the_result(tmp_path):
    small = {"train": 5, "val": 2, "size": (64, 96)}
    alone = hashes(build_mini_coco(tmp_path / "alone", **small))
    assert alone == hashes(build_mini_coco(tmp_path / "together", jobs=2, **small))


def test_a_smaller_build_is_the_beginning_of_a_larger_one(tmp_path, mini_coco):
    short = build_mini_coco(tmp_path / "short", train=6, val=3, seed=0)
    for split, count in (("train", 6), ("val", 3)):
        names = sorted(p.name for p in (short / split).iterdir())
        assert len(names) == count
        for name in names:
            assert (short / split / name).read_bytes() == (mini_coco / split / name).read_bytes()
        few, many = read_split(short, split), read_split(mini_coco, split)
        assert few["images"] == many["images"][:count]
        assert few["annotations"] == many["annotations"][: len(few["annotations"])]


def test_layout_and_header(mini_coco):
    assert {p.name for p in mini_coco.iterdir()} == {
        *("annotations", "train", "val", "contact_sheet.png", "build.json"),
    }
    ids = []
    for split, count in (("train", 80), ("val", 40)):
        content = read_split(mini_coco, split)
        assert [(c["id"], c["name"]) for c in content["categories"]] == list(
            enumerate(CLASS_NAMES, start=1)
        )
        assert "MIT" in content["licenses"][0]["name"]
        assert split in content["info"]["description"]
        assert len(content["images"]) == len(list((mini_coco / split).iterdir())) == count
        for record in content["images"]:
            with Image.open(mini_coco / split / record["file_name"]) as image:
                assert (image.width, image.height) == (record["width"], record["height"])
                assert (image.mode, image.size) == ("RGB", (256, 192))
            ids.append(record["id"])
        numbers = [a["id"] for a in content["annotations"]]
        assert numbers == list(range(1, len(numbers) + 1))
    assert len(set(ids)) == 120


@pytest.mark.parametrize("split", ["train", "val"])
def test_boxes_and_areas_are_those_of_the_masks(mini_coco, split):
    coco = open_coco(mini_coco, split)
    for annotation in coco.dataset["annotations"]:
        rle = coco.annToRLE(annotation)
        area = coco_mask.area(rle)
        assert abs(area - annotation["area"]) <= max(1, 0.02 * area)
        np.testing.assert_allclose(coco_mask.toBbox(rle), annotation["bbox"], atol=1)
        x, y, width, height = annotation["bbox"]
        assert width >= 1
        assert height >= 1
        assert 0 <= x <= x + width <= 256
        assert 0 <= y <= y + height <= 192


@pytest.mark.parametrize("split", ["train", "val"])
def test_sizes_crowds_and_empty_images_all_occur(mini_coco, split):
    content = read_split(mini_coco, split)
    areas = np.array([a["area"] for a in ordinary(content)])
    assert areas.min() >= 16
    assert (areas < SMALL).mean() > 0.2
    assert ((areas >= SMALL) & (areas < MEDIUM)).mean() > 0.3
    images = len(content["images"])
    crowds = [a for a in content["annotations"] if a["iscrowd"]]
    empty = images - len({a["image_id"] for a in content["annotations"]})
    assert 1 <= len(crowds) <= 0.15 * images
    assert 1 <= empty <= 0.15 * images
    for crowd in crowds:
        assert isinstance(crowd["segmentation"]["counts"], list)
        assert len(crowd["garment_ids"]) > 3
    assert {a["category_id"] for a in ordinary(content)} == set(range(1, 11))
    per_image = np.bincount([a["image_id"] for a in ordinary(content)])
    assert per_image.max() <= 6


def test_a_large_canvas_has_large_objects(tmp_path):
    root = build_mini_coco(tmp_path / "big", train=3, val=1, size=(400, 540))
    assert any(a["area"] >= MEDIUM for a in ordinary(read_split(root, "train")))


def test_masks_are_what_is_visible(mini_coco):
    """Polygons decode to pixels; no pixel belongs to two instances, though boxes overlap."""
    coco = open_coco(mini_coco, "train")
    boxes_overlap = 0
    for image_id in coco.getImgIds():
        annotations = coco.loadAnns(coco.getAnnIds(image_id, iscrowd=False))
        if not annotations:
            continue
        masks = np.stack([coco.annToMask(a) for a in annotations])
        assert (masks.sum(axis=0) > 1).sum() == 0
        boxes = np.array([a["bbox"] for a in annotations], float)
        boxes_overlap += (np.triu(coco_mask.iou(boxes, boxes, [0] * len(boxes)), 1) > 0.05).any()
    assert boxes_overlap > 10


def test_garments_come_from_their_own_split(tmp_path):
    source = write_fake_fashion_mnist(tmp_path / "source", train=20, test=10)
    root = build_mini_coco(
        tmp_path / "coco", train=40, val=40, size=(96, 128), fashion_mnist=source
    )
    seen = {}
    for split, upright in (("train", True), ("val", False)):
        content = read_split(root, split)
        labels = load_garments(split, source)[1]
        seen[split] = {a["garment_id"] for a in ordinary(content)}
        for annotation in ordinary(content):
            assert annotation["category_id"] == labels[annotation["garment_id"]] + 1
        whole = _whole_boxes(content)
        assert len(whole) >= 3
        assert all((height > width) == upright for _, _, width, height in whole)
    assert max(seen["val"]) < 10
    assert max(seen["train"]) >= 10


def test_a_dev_build_shows_train_garments_only_and_shares_none(tmp_path):
    """No garment that results are reported on, and none in both of its splits."""
    source = write_fake_fashion_mnist(tmp_path / "source", train=100, test=50)
    small = {"train": 40, "val": 40, "size": (96, 128), "fashion_mnist": source}
    root = build_mini_coco(tmp_path / "dev", dev=True, **small)
    labels = load_garments("train", source)[1]
    seen = {}
    for split in ("train", "val"):
        content = read_split(root, split)
        seen[split] = {a["garment_id"] for a in ordinary(content)}
        seen[split] |= {i for a in content["annotations"] for i in a.get("garment_ids", ())}
        for annotation in ordinary(content):
            assert annotation["category_id"] == labels[annotation["garment_id"]] + 1
        whole = _whole_boxes(content)
        assert len(whole) >= 3
        assert all(height > width for _, _, width, height in whole)  # test garments lie
    # Ten of each of the ten classes, which take turns: the first eight and the last two.
    assert max(seen["train"]) < 80 <= min(seen["val"])
    assert {labels[i] for i in seen["val"]} == set(range(10))
    again = build_mini_coco(tmp_path / "again", dev=True, **small)
    assert hashes(root) == hashes(again)


def test_a_dev_build_is_recorded_and_not_taken_for_another(tmp_path):
    small = {"train": 2, "val": 2, "size": (64, 64)}
    root = build_mini_coco(tmp_path / "coco", dev=True, **small)
    assert json.loads((root / "build.json").read_text("utf-8"))["arguments"]["dev"] is True
    before = hashes(root)
    build_mini_coco(root, dev=True, **small)
    with pytest.raises(DataError, match="dev True instead of None"):
        build_mini_coco(root, **small)
    assert hashes(root) == before
    build_mini_coco(root, force=True, **small)
    assert "dev" not in json.loads((root / "build.json").read_text("utf-8"))["arguments"]


def test_a_dev_build_needs_several_garments_of_a_class(tmp_path):
    source = write_fake_fashion_mnist(tmp_path / "source", train=10, test=10)
    with pytest.raises(DataError, match="10 train garments are too few for a dev build"):
        build_mini_coco(tmp_path / "coco", train=1, val=1, dev=True, fashion_mnist=source)


def test_splits_share_no_scenes_even_where_they_share_garments(tmp_path):
    source = write_fake_fashion_mnist(tmp_path / "source", train=20, test=20)
    for kind in ("images-idx3", "labels-idx1"):
        train = (source / f"train-{kind}-ubyte.gz").read_bytes()
        (source / f"t10k-{kind}-ubyte.gz").write_bytes(train)
    root = build_mini_coco(tmp_path / "coco", train=3, val=3, size=(64, 64), fashion_mnist=source)
    train, val = ({p.read_bytes() for p in (root / split).iterdir()} for split in ("train", "val"))
    assert not train & val


def _whole_boxes(content):
    """Boxes of garments that nothing hides: alone in the image and inside its border."""
    alone = {}
    for annotation in content["annotations"]:
        alone.setdefault(annotation["image_id"], []).append(annotation)
    boxes = [own[0]["bbox"] for own in alone.values() if len(own) == 1]
    return [b for b in boxes if b[0] > 0 and b[1] > 0 and b[0] + b[2] < 128 and b[1] + b[3] < 96]


def test_segmentation_formats_describe_the_same_masks(tmp_path):
    small = {"train": 6, "val": 1, "size": (96, 128)}
    kinds, masks, images = {}, {}, {}
    for name in ("polygon", "rle", "mixed"):
        root = build_mini_coco(tmp_path / name, segmentation=name, **small)
        coco = open_coco(root, "train")
        own = ordinary(coco.dataset)
        kinds[name] = {
            "polygon" if isinstance(s, list) else type(s["counts"]).__name__
            for s in (a["segmentation"] for a in own)
        }
        masks[name] = [coco.annToMask(a) for a in own]
        images[name] = {k: v for k, v in hashes(root).items() if k.startswith("train/")}
    assert kinds == {"polygon": {"polygon"}, "rle": {"str"}, "mixed": {"polygon", "str", "list"}}
    assert images["polygon"] == images["rle"] == images["mixed"]
    for name in ("rle", "mixed"):
        assert len(masks[name]) == len(masks["polygon"]) > 5
        for a, b in zip(masks[name], masks["polygon"], strict=True):
            np.testing.assert_array_equal(a, b)


def test_chosen_classes_and_sizes(tmp_path):
    """Categories follow the names' order, garments keep their places in what was loaded."""
    names = ["Sneaker", "Bag"]
    size = {"train": 12, "val": 4, "size": (192, 256)}
    root = build_mini_coco(tmp_path / "coco", classes=names, min_scale=2.5, **size)
    for split in ("train", "test"):
        content = read_split(root, "val" if split == "test" else "train")
        assert [(one["id"], one["name"]) for one in content["categories"]] == [
            (1, names[0]),
            (2, names[1]),
        ]
        labels = load_garments(split)[1]
        for one in ordinary(content):
            assert CLASS_NAMES[labels[one["garment_id"]]] == names[one["category_id"] - 1]
    sides = [max(one["bbox"][2:]) for one in ordinary(read_split(root, "train"))]
    assert len(sides) > 20
    assert np.median(sides) > 75  # 56 otherwise
    arguments = json.loads((root / "build.json").read_text("utf-8"))["arguments"]
    assert (arguments["classes"], arguments["min_scale"]) == (names, 2.5)


def test_files_without_the_chosen_classes(tmp_path):
    source = write_fake_fashion_mnist(tmp_path / "source", train=20, test=5)  # the first five
    with pytest.raises(DataError, match=r"no val image of Fashion-MNIST shows one of .'Sneaker'"):
        build_mini_coco(
            tmp_path / "coco", train=1, val=1, classes=["Sneaker"], fashion_mnist=source
        )
    assert not (tmp_path / "coco").exists()


def test_contact_sheet_has_a_tile_for_each_of_the_first_images(mini_coco):
    with Image.open(mini_coco / "contact_sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    # 12 train and 8 val tiles, twice 256 x 192, captions of 22 and gaps of 10 pixels.
    assert pixels.shape == (4 * (384 + 22 + 10) + 10, 5 * (512 + 10) + 10, 3)
    first = pixels[10 + 22 : 10 + 22 + 384, 10 : 10 + 512]
    with Image.open(mini_coco / "train" / "000000000001.png") as image:
        plain = np.asarray(image.resize((512, 384), Image.Resampling.BICUBIC)).astype(int)
    changed = (np.abs(first - plain).max(axis=2) > 2).mean()
    assert 0.02 < changed < 0.6, "the annotations are not drawn, or over everything"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": 0}, "train 0"),
        ({"val": -1}, "val -1"),
        ({"seed": -1}, "seed -1"),
        ({"jobs": 0}, "jobs 0"),
        ({"size": (32, 256)}, r"size \(32, 256\).*64\.\.4096"),
        ({"segmentation": "bitmap"}, r"'bitmap'.*'polygon', 'rle', 'mixed'"),
        ({"classes": ["Bag", "Hat"]}, r"'Hat'.*one or more of.*'Sneaker'"),
        ({"classes": ["Bag", "Bag"]}, "each once"),
        ({"classes": []}, "one or more"),
        ({"min_scale": 0.5}, r"min_scale 0\.5 .*0\.7 to 5"),
        ({"min_scale": 6.0}, r"min_scale 6\.0"),
    ],
)
def test_arguments_out_of_range(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        build_mini_coco(tmp_path / "coco", **change)
    assert not (tmp_path / "coco").exists()


def test_build_file_tells_the_arguments(mini_coco):
    build = json.loads((mini_coco / "build.json").read_text("utf-8"))
    expected = {"train": 80, "val": 40, "seed": 0, "size": [192, 256], "segmentation": "polygon"}
    assert expected.items() <= build["arguments"].items()


def test_garments_that_cannot_be_read_make_no_directory(tmp_path):
    with pytest.raises(DataError, match="idx3-ubyte"):
        build_mini_coco(tmp_path / "coco", fashion_mnist=tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []
