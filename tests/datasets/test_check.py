"""Every kind of finding on a broken copy of a real mini-COCO, and nothing on a sound one."""

import copy
import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradaug_det.datasets import build_mini_coco
from gradaug_det.datasets.check import (
    KINDS,
    check_before_training,
    check_coco,
    check_imagefolder,
)
from gradaug_det.datasets.check_kinds import MAX_EXAMPLES, SEVERITIES, kinds_table
from gradaug_det.errors import ConfigError, DataError

HEIGHT, WIDTH = 96, 128
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
    "id-not-integer": ({"id": "seven"}, (), {"value": "seven"}),
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
    names = ["Trouser", "person"]
    assert_found(check(same, class_names=names), "class-not-in-file", 1, name="person")


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
        (b"", "is not valid JSON"),
        (b'{"images": [', "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"images": [' + b"9" * 5000 + b"]}", "is not valid JSON"),
        (b"[]", "holds a JSON list"),
        (b"{}", "'images' is missing"),
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
    assert kinds_table() in DOCS.read_text("utf-8"), (
        "put the output of kinds_table() into docs/check_data.md"
    )


def test_every_kind_was_found_by_a_test():
    """Of this module, run as a whole."""
    if len(COVERED) < 10:
        pytest.skip("needs the other tests of this module")
    assert KINDS.keys() - COVERED == set()
