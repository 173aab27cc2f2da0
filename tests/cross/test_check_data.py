"""What the kinds of findings say about the frameworks, seen in the frameworks themselves."""

import json
import math

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from PIL import Image

from gradaug_det.d2.data import check_datasets, register_coco
from gradaug_det.datasets.check import check_coco
from gradaug_det.errors import DataError
from gradaug_det.mmdet.train import check_data
from tests.d2.dataset import SIZE, annotation, crowd, write_coco

GOOD = annotation(10, 10, 40, 50)
OTHER = annotation(60, 20, 50, 60, category=2)
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


FILES = {
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


def _as_jpeg(orientation):
    def edit(content, folder):
        exif = Image.Exif()
        exif[274] = orientation
        with Image.open(folder / "0.png") as image:
            image.save(folder / "0.jpg", exif=exif)
        content["images"][0]["file_name"] = "0.jpg"

    return edit


def test_exif(tmp_path):
    """Detectron2 notices that the size differs; MMDetection cuts the boxes at the turned edge."""
    file, images = edited(tmp_path, _as_jpeg(6))
    assert both(file, images) == (LATER, [GOOD_SEEN, ((60, 20, HEIGHT, 80), 1)])
    file, images = edited(tmp_path / "half", _as_jpeg(3))
    assert both(file, images) == (KEPT, KEPT)


def test_sixteen_bits(tmp_path):
    """Detectron2 clips them, MMDetection scales them."""
    from detectron2.data.detection_utils import read_image
    from mmcv import imread

    grey = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "16.png")
    assert read_image(str(tmp_path / "16.png"), "BGR").mean() > 250
    assert 120 < imread(tmp_path / "16.png", backend="cv2").mean() < 136


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
    with pytest.raises(DataError, match=r"too-many-categories: .*categories 3, num_classes 2"):
        check_datasets(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.RETINANET.NUM_CLASSES = "RetinaNet", 3
    check_datasets(cfg)
    del config.train_dataloader.dataset["metainfo"]  # COCO's 80 names, as MMDetection takes them
    with pytest.raises(DataError, match=r'80 x class-not-in-file: .*name "person"'):
        check_data(config)


def test_images_that_mmdetection_would_miss_later(configs, tmp_path):
    _, config = configs([GOOD])
    (tmp_path / "data" / "images" / "0.png").unlink()
    with pytest.raises(DataError, match=r'1 x missing-image: .*file_name "0\.png"'):
        check_data(config)
    config.train_dataloader.dataset.type = "LVISV1Dataset"  # of another format
    check_data(config)
