"""What the kinds of findings say about the frameworks, seen in the frameworks themselves."""

import json
import math

import mmcv
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from detectron2.data.detection_utils import read_image
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from PIL import ExifTags, Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from gradaug_det.check_data.check import check_before_training, check_coco
from gradaug_det.check_data.images import _read_orientations
from gradaug_det.d2.data import check_datasets, register_coco
from gradaug_det.errors import ConfigError, DataError
from gradaug_det.mmdet.data import check_data
from tests.d2.dataset import SIZE, annotation, crowd, write_coco

GOOD = annotation(10, 10, 40, 50)
OTHER = annotation(60, 20, 50, 60, category=2)
ORIENTATION = ExifTags.Base.Orientation
CLASSES = ("class0", "class1", "class2")
HEIGHT, WIDTH = SIZE
PIPELINE = [
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
    {"type": "Resize", "scale": (WIDTH, HEIGHT), "keep_ratio": True},
    {"type": "RandomFlip", "prob": 0.0},
    {"type": "PackDetInputs"},
]
register_all_modules(init_default_scope=True)


def detectron2(file, images, mask_format="bitmask"):
    """Boxes (XYXY) and classes that training sees of the first image, or where it stops."""
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MASK_FORMAT = mask_format
    cfg.INPUT.MIN_SIZE_TRAIN = (HEIGHT,)
    cfg.INPUT.RANDOM_FLIP = "none"
    name = f"check_{file}"
    try:
        records = load_coco_json(str(file), str(images), name)
    except Exception:
        return "stops loading"
    finally:
        MetadataCatalog.remove(name)
    try:
        seen = DatasetMapper(cfg, is_train=True)(records[0])["instances"]
    except Exception:
        return "stops later"
    if not seen.has("gt_masks"):
        return "no masks"
    boxes = seen.gt_boxes.tensor.round().int().tolist()
    return list(zip(map(tuple, boxes), seen.gt_classes.tolist(), strict=True))


def mmdetection(file, images):
    """The same of MMDetection."""
    config = {
        "type": "CocoDataset",
        "ann_file": str(file),
        "data_prefix": {"img": str(images)},
        "metainfo": {"classes": CLASSES},
        "pipeline": PIPELINE,
        "serialize_data": False,  # it collects garbage, half a second each time
    }
    try:
        dataset = DATASETS.build(config)
    except Exception:
        return "stops loading"
    try:
        seen = dataset.prepare_data(0)["data_samples"].gt_instances
    except Exception:
        return "stops later"
    boxes = seen.bboxes.tensor.round().int().tolist()
    return list(zip(map(tuple, boxes), seen.labels.tolist(), strict=True))


def both(file, images):
    return detectron2(file, images), mmdetection(file, images)


GOOD_SEEN, OTHER_SEEN = ((10, 10, 50, 60), 0), ((60, 20, 110, 80), 1)
LOST, KEPT = [GOOD_SEEN], [GOOD_SEEN, OTHER_SEEN]
LOADING, LATER = "stops loading", "stops later"


def seen(*box):
    return [GOOD_SEEN, (box, 1)]


def rle(counts, size=SIZE):
    return {"segmentation": {"size": list(size), "counts": counts}}


# kind -> the second annotation, what Detectron2 and MMDetection make of it
ANNOTATIONS = {
    "box-malformed": (OTHER | {"bbox": [60, 20, 5]}, LATER, LOADING),
    "box-not-finite": (OTHER | {"bbox": [60, 20, math.nan, 60]}, LOST, LOST),
    "box-not-finite, infinite": (
        OTHER | {"bbox": [60, 20, math.inf, 60]},
        seen(60, 20, WIDTH, 80),
        seen(60, 20, WIDTH, 80),
    ),
    "box-negative-size": (OTHER | {"bbox": [60, 20, -30, 60]}, seen(30, 20, 60, 80), LOST),
    "box-zero-area": (OTHER | {"bbox": [60, 20, 0, 60]}, LOST, LOST),
    "box-below-one-pixel": (OTHER | {"bbox": [60, 20, 0.75, 60]}, seen(60, 20, 61, 80), LOST),
    "box-outside-image": (OTHER | {"bbox": [200, 150, 30, 30]}, LOST, LOST),
    "box-partly-outside": (
        OTHER | {"bbox": [100, 70, 60, 60]},
        seen(100, 70, WIDTH, HEIGHT),
        seen(100, 70, WIDTH, HEIGHT),
    ),
    "area-missing": ({k: v for k, v in OTHER.items() if k != "area"}, KEPT, LOADING),
    "area-missing, NaN": (OTHER | {"area": math.nan}, KEPT, KEPT),
    "area-not-positive": (OTHER | {"area": 0}, KEPT, LOST),
    "iscrowd-invalid": (OTHER | {"iscrowd": None}, LOST, KEPT),
    "iscrowd-with-polygon": (OTHER | {"iscrowd": 1}, LOST, LOST),
    "iscrowd-missing": ({k: v for k, v in OTHER.items() if k != "iscrowd"}, KEPT, KEPT),
    "annotation-id-text": (OTHER | {"id": "seven"}, KEPT, KEPT),
    "image-id-differs": (OTHER | {"image_id": "1"}, LOST, LOST),
    "ignore-set": (OTHER | {"ignore": 1}, LOADING, LOST),
    "unknown-category": (OTHER | {"category_id": 9}, LOADING, LOST),
    "unknown-image": (OTHER | {"image_id": 9}, LOST, LOST),
    "duplicate-annotation-id": (OTHER | {"id": 1}, LOADING, LOADING),
    "annotation-id-zero": (OTHER | {"id": 0}, KEPT, KEPT),
    "missing-key": ({k: v for k, v in OTHER.items() if k != "bbox"}, LATER, LOADING),
    "segmentation-missing": (OTHER | {"segmentation": []}, LATER, LATER),
    "segmentation-missing, crowd": (crowd() | {"segmentation": []}, LOST, LATER),
    "segmentation-malformed": (OTHER | {"segmentation": [1, 2, 3, 4, 5, 6]}, LOADING, LATER),
    "segmentation-malformed, text": (OTHER | {"segmentation": "abc"}, LOST, LATER),
    "segmentation-malformed, no size": (OTHER | {"segmentation": {"counts": []}}, LOADING, LOST),
    "polygon-too-short": (OTHER | {"segmentation": [[1, 2, 3, 4]]}, LOST, LOST),
    "polygon-outside": (OTHER | {"segmentation": [[60, 20, 310, 20, 310, 180]]}, KEPT, KEPT),
    "rle-instance": (OTHER | rle([0, 20, HEIGHT * WIDTH - 20]), KEPT, KEPT),
    "rle-wrong-size": (OTHER | rle([0, HEIGHT * WIDTH], (WIDTH, HEIGHT)), LATER, LATER),
    "rle-wrong-size, crowd": (crowd() | rle([0, 3000], (50, 60)), LOST, LATER),
    "rle-unreadable": (OTHER | rle([0, HEIGHT * WIDTH + 1]), LATER, LATER),
    "rle-unreadable, too few": (OTHER | rle([10, 20]), KEPT, KEPT),
    "rle-empty": (OTHER | rle([HEIGHT * WIDTH]), LOST, KEPT),
}


@pytest.mark.parametrize("case", ANNOTATIONS)
def test_annotations(tmp_path, case):
    broken, in_detectron2, in_mmdetection = ANNOTATIONS[case]
    file, images = write_coco(tmp_path / "data", [[GOOD, broken]])
    kinds = {finding.kind.name for finding in check_coco(file, images).findings}
    assert case.split(",")[0] in kinds
    assert both(file, images) == (in_detectron2, in_mmdetection)

    # Alone: what the frameworks leave out is what the check counts as lost.
    file, images = write_coco(tmp_path / "alone", [[broken | {"id": 2}]])
    found = {finding.kind.name: finding for finding in check_coco(file, images).findings}
    none = found["no-objects-left"].examples if "no-objects-left" in found else []
    lost = {example["framework"] for example in none}
    for name, seen in (("Detectron2", in_detectron2), ("MMDetection", in_mmdetection)):
        if isinstance(seen, list):
            assert (name in lost) == (seen == LOST)


def test_missing_masks_take_all_others_of_the_image_along(tmp_path):
    file, images = write_coco(tmp_path / "data", [[OTHER | {"segmentation": []}, GOOD]])
    assert both(file, images) == ("no masks", LATER)


def test_run_lengths_and_detectron2s_default(tmp_path):
    file, images = write_coco(tmp_path / "data", [[GOOD, OTHER | rle([0, HEIGHT * WIDTH])]])
    assert detectron2(file, images, "polygon") == LATER


def edited(tmp_path, edit):
    file, images = write_coco(tmp_path / "data", [[GOOD, OTHER], [GOOD]])
    content = json.loads(file.read_text())
    edit(content, images)
    file.write_text(json.dumps(content))
    return file, images


def _same_image_id(content, _):
    content["images"][1]["id"] = 1
    content["annotations"].pop()


def _same_category_id(content, _):
    content["categories"].append({"id": 1, "name": "again"})


def _all_crowds(content, _):
    for one in content["annotations"]:
        one["iscrowd"] = 1


def _text_among_numbers(content, _):
    content["images"][1]["id"] = content["annotations"][2]["image_id"] = "two"


FILES = {
    "ids-mixed": (_text_among_numbers, LOADING, KEPT),
    "no-objects-left": (
        lambda c, _: [a.update(iscrowd=1) for a in c["annotations"]],
        "no masks",
        [],
    ),
    "duplicate-image-id": (_same_image_id, KEPT, KEPT),
    "duplicate-category-id": (
        _same_category_id,
        [(GOOD_SEEN[0], 1), (OTHER_SEEN[0], 2)],
        KEPT,
    ),
    "categories-not-sorted": (
        lambda c, _: c["categories"].reverse(),
        KEPT,
        [(GOOD_SEEN[0], 2), (OTHER_SEEN[0], 1)],
    ),
    "missing-key": (lambda c, _: c["images"][0].pop("width"), LOADING, LOADING),
    "image-size-differs": (
        lambda c, _: c["images"][0].update(width=WIDTH * 2, height=HEIGHT * 2),
        LATER,
        KEPT,
    ),
    "missing-image": (lambda c, folder: (folder / "0.png").unlink(), LATER, LATER),
    "unreadable-image": (lambda c, folder: (folder / "0.png").write_text("no"), LATER, LATER),
}


@pytest.mark.parametrize("kind", FILES)
def test_files(tmp_path, kind):
    edit, in_detectron2, in_mmdetection = FILES[kind]
    file, images = edited(tmp_path, edit)
    assert kind in {finding.kind.name for finding in check_coco(file, images).findings}
    assert both(file, images) == (in_detectron2, in_mmdetection)


def _xmp(orientation):
    tiff = 'xmlns:tiff="http://ns.adobe.com/tiff/1.0/"'
    text = f'<rdf:Description {tiff} tiff:Orientation="{orientation}"/>'
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{text}</x:xmpmeta>'.encode()


def _exif(orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return {"exif": exif}


def _png_text(orientation):
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", _xmp(orientation).decode())
    return {"pnginfo": info}


CONTAINERS = {
    "JPEG": ("JPEG", _exif),
    "JPEG, XMP": ("JPEG", lambda o: {"xmp": _xmp(o)}),
    "JPEG, both": ("JPEG", lambda o: _exif(1) | {"xmp": _xmp(o)}),
    "MPO": ("MPO", lambda o: _exif(o) | {"save_all": True, "append_images": [CORNERS]}),
    "PNG": ("PNG", _exif),
    "PNG, XMP": ("PNG", _png_text),
    "WebP": ("WEBP", lambda o: _exif(o) | {"lossless": True}),
    "WebP, XMP": ("WEBP", lambda o: {"xmp": _xmp(o), "lossless": True}),
    "TIFF": ("TIFF", lambda o: {"tiffinfo": {ORIENTATION: o}}),
    "AVIF": ("AVIF", _exif),
    "AVIF, XMP": ("AVIF", lambda o: {"xmp": _xmp(o)}),
}
CORNERS = Image.new("RGB", (48, 32))
for _place, _colour in (((24, 0), (0, 255, 0)), ((0, 16), (0, 0, 255)), ((24, 16), (255,) * 3)):
    CORNERS.paste(_colour, (*_place, _place[0] + 24, _place[1] + 16))


def _corners(pixels):
    height, width = pixels.shape[:2]
    middles = [pixels[y * height // 4, x * width // 4] > 128 for y in (1, 3) for x in (1, 3)]
    return (height, width, *(tuple(middle.tolist()) for middle in middles))


@pytest.mark.parametrize("container", CONTAINERS)
def test_orientation(tmp_path, container):
    """Each framework's reader turns an image as the check takes it to."""
    kind, options = CONTAINERS[container]
    turned = {}
    for orientation in range(1, 9):
        with Image.open(_saved(tmp_path, "PNG", _exif(orientation))) as image:
            turned[_corners(np.array(ImageOps.exif_transpose(image)))] = orientation
    assert len(turned) == 8
    for orientation in range(1, 9):
        path = _saved(tmp_path, kind, options(orientation))
        with Image.open(path) as image:
            expected = _read_orientations(image)
        seen = {
            "Detectron2": turned[_corners(read_image(path, "RGB"))],
            "MMDetection": turned[_corners(mmcv.imread(path, channel_order="rgb", backend="cv2"))],
        }
        assert seen == {framework: expected[framework] for framework in seen}, orientation


def _saved(folder, kind, options):
    path = str(folder / f"picture.{kind.lower()}")
    CORNERS.save(path, kind, **options)
    return path


def test_exif(tmp_path):
    """Detectron2 notices that the size differs; MMDetection cuts the boxes at the turned edge."""

    def edit(content, folder):
        with Image.open(folder / "0.png") as image:
            image.save(folder / "0.jpg", **_exif(6))
        content["images"][0]["file_name"] = "0.jpg"

    file, images = edited(tmp_path, edit)
    assert both(file, images) == (LATER, [GOOD_SEEN, ((60, 20, HEIGHT, 80), 1)])


def test_sixteen_bits(tmp_path):
    """Detectron2 clips them, MMDetection scales them."""
    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "16.png")
    assert read_image(str(tmp_path / "16.png"), "BGR").mean() > 250
    assert 120 < mmcv.imread(tmp_path / "16.png", backend="cv2").mean() < 136


# kind -> the change, what the evaluators of both frameworks do with perfect predictions
SCORED = {
    "good": (lambda c: None, 100),
    "iscrowd-missing": (lambda c: c["annotations"][1].pop("iscrowd"), KeyError),
    "iscrowd-invalid": (lambda c: c["annotations"][1].update(iscrowd=None), TypeError),
    "annotation-id-text": (lambda c: c["annotations"][1].update(id="seven"), ValueError),
    "annotation-id-zero": (lambda c: c["annotations"][1].update(id=0), 50),
    "area-missing": (lambda c: c["annotations"][1].pop("area"), KeyError),
    "segmentation-missing": (lambda c: c["annotations"][1].pop("segmentation"), KeyError),
    "no-segmentations": (lambda c: [a.pop("segmentation") for a in c["annotations"]], KeyError),
}


@pytest.mark.parametrize("kind", SCORED)
def test_evaluators(tmp_path, kind):
    edit, expected = SCORED[kind]
    file, images = edited(tmp_path, lambda content, _: edit(content))
    assert score_detectron2(file, images, ("bbox", "segm")) == expected
    assert score_mmdetection(file) == expected
    if expected == 100:
        check_before_training(file, name="set", trains=False)
    elif expected != 50:  # a warning: files that count from 0 have one such object
        with pytest.raises(DataError, match=kind):
            check_before_training(file, name="set", trains=False)


def _seen_perfectly(classes=2):
    """(image id, boxes, labels, masks) of what `edited` writes."""
    for image_id, objects in ((1, [GOOD, OTHER]), (2, [GOOD])):
        boxes = torch.tensor([a["bbox"] for a in objects], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        masks = torch.zeros(len(objects), *SIZE, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        yield image_id, boxes, torch.arange(len(objects)) % classes, masks


def score_detectron2(file, images, tasks, keypoints=0):
    """The AP of boxes in percent, or the error."""
    name = f"scored_{file}"
    register_coco(name, file, images)
    DatasetCatalog.get(name)
    evaluator = COCOEvaluator(name, tasks, False, kpt_oks_sigmas=[0.05] * keypoints)
    evaluator.reset()
    for image_id, boxes, labels, masks in _seen_perfectly(1 if keypoints else 2):
        instances = Instances(SIZE, pred_boxes=Boxes(boxes), pred_classes=labels, pred_masks=masks)
        instances.scores = torch.ones(len(boxes))
        if keypoints:
            instances.pred_keypoints = torch.ones(len(boxes), keypoints, 3)
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    try:
        return round(evaluator.evaluate()["bbox"]["AP"])
    except Exception as error:
        return type(error)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def score_mmdetection(file):
    """The same of MMDetection."""
    metric = CocoMetric(ann_file=str(file), metric=["bbox", "segm"])
    metric.dataset_meta = {"classes": CLASSES}
    samples = []
    for image_id, boxes, labels, masks in _seen_perfectly():
        found = {
            "bboxes": boxes,
            "labels": labels,
            "masks": masks,
            "scores": torch.ones(len(boxes)),
        }
        samples.append({"img_id": image_id, "ori_shape": SIZE, "pred_instances": found})
    metric.process({}, samples)
    try:
        return round(100 * metric.evaluate(size=len(samples))["coco/bbox_mAP"])
    except Exception as error:
        return type(error)


POINTS = [12, 12, 2, 48, 58, 2]
KEYPOINTS = {
    "good": ({}, "kept", 100),
    "keypoints-malformed": ({"keypoints": POINTS[:3]}, LATER, IndexError),
    "keypoints-missing": ({"keypoints": None}, LATER, KeyError),
    "num-keypoints-missing": ({"num_keypoints": None}, "kept", KeyError),
    "keypoint-visibility": ({"keypoints": [12, 12, 0.9, 48, 58, 2]}, "kept", 100),
}


@pytest.mark.parametrize("kind", KEYPOINTS)
def test_keypoints_in_detectron2(tmp_path, kind):
    """MMDetection's CocoDataset does not read them."""
    changes, trained, scored = KEYPOINTS[kind]

    def edit(content, _):
        content["categories"][0]["keypoints"] = ["head", "foot"]
        content["annotations"][1]["category_id"] = 1
        for one in content["annotations"]:
            one.update(keypoints=POINTS, num_keypoints=2)
        target = content["annotations"][1]
        target.update(changes)
        for key in [key for key, value in changes.items() if value is None]:
            del target[key]

    file, images = edited(tmp_path, edit)
    kinds = {finding.kind.name for finding in check_coco(file, images).findings}
    assert kind in kinds or (kind == "good" and not any("keypoint" in name for name in kinds))
    records = load_coco_json(str(file), str(images), None)
    mapper = DatasetMapper(
        is_train=True,
        augmentations=[],
        image_format="BGR",
        use_keypoint=True,
        keypoint_hflip_indices=np.array([0, 1]),
    )
    try:
        assert mapper(records[0])["instances"].gt_keypoints.tensor.shape == (2, 2, 3)
        seen = "kept"
    except Exception:
        seen = LATER
    assert seen == trained
    assert score_detectron2(file, images, ("bbox", "keypoints"), keypoints=2) == scored


@pytest.fixture
def configs(tmp_path):
    """Writes a data set; gives Detectron2's and MMDetection's configs that train on it."""
    name = f"check_{tmp_path.name}"

    def make(annotations, masks=True, classes=3):
        file, images = write_coco(tmp_path / "data", [annotations, [GOOD]])
        register_coco(name, file, images)
        cfg = get_cfg()
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
        cfg.MODEL.MASK_ON = masks
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
        dataset = {
            "type": "CocoDataset",
            "ann_file": str(file),
            "data_prefix": {"img": str(images)},
            "metainfo": {"classes": CLASSES[:classes]},
            "pipeline": [{"type": "LoadAnnotations", "with_mask": masks}],
        }
        return cfg, Config({"train_dataloader": {"dataset": dataset}})

    yield make
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_both_stop_before_training(configs, tmp_path):
    cfg, config = configs([GOOD, OTHER | {"bbox": [60, 20, -30, 60]}])
    sentence = r"1 x box-negative-size: .*annotation_id 2.*to see all: gradaug-det check-data"
    with pytest.raises(DataError, match=rf"dataset 'check_{tmp_path.name}': {sentence}"):
        check_datasets(cfg)
    with pytest.raises(DataError, match=rf"train_dataloader\.dataset: {sentence}"):
        check_data(config)


def test_masks_matter_only_where_they_are_trained(configs):
    broken = [GOOD, OTHER | {"segmentation": []}]
    cfg, config = configs(broken, masks=False)
    check_datasets(cfg)
    check_data(config)
    cfg.MODEL.MASK_ON = True
    config.train_dataloader.dataset.pipeline[0].with_mask = True
    for check, setting in ((check_datasets, cfg), (check_data, config)):
        with pytest.raises(DataError, match="segmentation-missing"):
            check(setting)


def test_warnings_let_training_start(configs, caplog):
    cfg, config = configs([GOOD, OTHER | {"bbox": [60, 20, 0, 60]}])
    check_datasets(cfg)
    check_data(config)
    assert caplog.text.count("1 x box-zero-area") == 2


def test_the_models_classes(configs):
    cfg, config = configs([GOOD])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    with pytest.raises(ConfigError, match=r"NUM_CLASSES is 2, but the data has 3 classes"):
        check_datasets(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.RETINANET.NUM_CLASSES = "RetinaNet", 3
    check_datasets(cfg)
    del config.train_dataloader.dataset["metainfo"]  # COCO's 80 names, as MMDetection takes them
    wrong = r"COCO's 80 are not the categories of .*classes=\('class0', 'class1', 'class2'\)"
    with pytest.raises(ConfigError, match=wrong):
        check_data(config)


def test_images_that_mmdetection_would_miss_later(configs, tmp_path):
    _, config = configs([GOOD])
    (tmp_path / "data" / "images" / "0.png").unlink()
    with pytest.raises(DataError, match=r'1 x missing-image: .*file_name "0\.png"'):
        check_data(config)
    config.train_dataloader.dataset.type = "LVISV1Dataset"  # of another format
    check_data(config)
