"""Images and annotations that are not as they should be, through Detectron2's own data path."""

import itertools
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader

from gradaug_det.core.transforms import BatchTransform
from gradaug_det.d2 import GradAugHook
from gradaug_det.d2.data import check_datasets, register_coco
from gradaug_det.errors import DataError

from .dataset import annotation, crowd, write_coco
from .helpers import instances, tiny_cfg, tiny_model, train

GOOD = [annotation(10, 10, 40, 50), annotation(60, 20, 50, 60, category=2)]
_names = itertools.count()


@pytest.fixture
def dataset(tmp_path):
    """Writes and registers a dataset; gives the config that trains on it."""
    registered = []

    def make(images, sizes=None, filter_empty=False, scale=96, mask_format="polygon"):
        file, folder = write_coco(tmp_path / f"data{next(_names)}", images, sizes)
        name = f"bad_inputs_{next(_names)}"
        register_coco(name, file, folder)
        registered.append(name)
        cfg = tiny_cfg("mask_rcnn")
        cfg.DATASETS.TRAIN = (name,)
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
        cfg.INPUT.MIN_SIZE_TRAIN = (scale,)
        cfg.INPUT.MASK_FORMAT = mask_format
        cfg.SOLVER.IMS_PER_BATCH = len(images)
        return cfg

    yield make
    for name in registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def trains_on(cfg, supervision, scales=(1.0, 0.5), steps=2):
    torch.manual_seed(0)
    model = tiny_model(cfg=cfg)
    hook = GradAugHook(
        num_subnets=2, scales=list(scales), flip_prob=0.5, supervision=supervision, seed=1
    )
    trainer = train(model, hook, steps=steps, data=build_detection_train_loader(cfg))
    assert trainer.iter == steps
    assert all(p.isfinite().all() for p in model.parameters())
    return trainer


CASES = {
    "no annotations": [GOOD, []],
    "no annotations at all": [[], []],
    "only a crowd": [GOOD, [crowd()]],
    "box outside the image": [GOOD, [annotation(200, 150, 30, 30)]],
    "box partly outside": [GOOD, [annotation(100, 70, 60, 60)]],
    "negative corner": [GOOD, [annotation(-20, -10, 60, 60)]],
    "box of no area": [GOOD, [annotation(20, 20, 0, 0, segmentation=[[20, 20] * 4])]],
    "mask of no area": [
        GOOD,
        [annotation(20, 20, 30, 30, segmentation=[[20, 20, 40, 40, 30, 30]])],
    ],
    "object of one pixel": [GOOD, [annotation(20, 20, 1, 1)]],
}


@pytest.mark.parametrize("supervision", ["soft", "both"])
@pytest.mark.parametrize("case", CASES)
def test_training_goes_on(dataset, case, supervision):
    trains_on(dataset(CASES[case]), supervision)


def test_images_without_objects_are_left_out_as_detectron2_does(dataset):
    cfg = dataset([GOOD, [], [crowd()]], filter_empty=True)
    cfg.SOLVER.IMS_PER_BATCH = 1
    loader = iter(build_detection_train_loader(cfg))
    assert {next(loader)[0]["image_id"] for _ in range(6)} == {1}
    trains_on(cfg, "both")


@pytest.mark.parametrize("supervision", ["soft", "both"])
def test_one_pixel_after_scaling(dataset, supervision):
    """Images of 8x10 and 3x30 pixels, scaled to a twentieth for the sub-networks."""
    cfg = dataset(
        [[annotation(1, 1, 6, 5)], [annotation(5, 0, 20, 3)]],
        sizes=[(8, 10), (3, 30)],
        scale=8,
    )
    cfg.INPUT.MAX_SIZE_TRAIN = 32
    trainer = trains_on(cfg, supervision, scales=(0.05,))
    images = [item["image"] for item in next(iter(build_detection_train_loader(cfg)))]
    assert {BatchTransform(0.05).output_size(i.shape[-2:]) for i in images} == {(1, 1), (1, 2)}
    assert trainer.storage.latest()["gradaug/sub0/scale"][0] == 0.05


def test_bitmask_that_vanishes_when_scaled():
    size = (64, 64)
    target = instances([[10, 10, 12, 12], [20, 20, 60, 60]], size, masks="bitmask")
    batch = [{"image": torch.zeros(3, *size, dtype=torch.uint8), "instances": target}]
    hook = GradAugHook(num_subnets=2, scales=[0.1], supervision="both")
    trainer = train(tiny_model("mask_rcnn"), hook, steps=1, data=[batch])
    assert trainer.iter == 1


def test_missing_image_is_a_sentence_before_training(dataset, tmp_path):
    cfg = dataset([GOOD, GOOD])
    name = cfg.DATASETS.TRAIN[0]
    check = cfg.clone()
    check.DATASETS.TEST = ()
    check_datasets(check)
    (Path(MetadataCatalog.get(name).image_root) / "1.png").unlink()
    sentence = rf"'{name}': 1 of 2 image files are missing.*1\.png; correct"
    with pytest.raises(DataError, match=sentence):
        check_datasets(check)


def test_missing_annotations_and_unknown_names_are_sentences(tmp_path):
    cfg = tiny_cfg()
    cfg.DATASETS.TEST = ()
    cfg.DATASETS.TRAIN = ("no_such_set",)
    with pytest.raises(DataError, match="'no_such_set' is not registered; pass --register"):
        check_datasets(cfg)
    name = f"gone_{next(_names)}"
    register_coco(name, tmp_path / "gone.json", tmp_path)
    cfg.DATASETS.TRAIN = (name,)
    with pytest.raises(DataError, match=r"annotation file .*gone.json is missing; set DETECTRON2"):
        check_datasets(cfg)
    register_coco(name, tmp_path / "gone.json", tmp_path)  # the same again is no error
    with pytest.raises(DataError, match="registered with"):
        register_coco(name, tmp_path / "other.json", tmp_path)
    DatasetCatalog.remove(name)


def test_missing_mini_coco_names_the_command(tmp_path, monkeypatch):
    from gradaug_det.d2.data import MINI_COCO, register_mini_coco

    for name in MINI_COCO:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_mini_coco()
    cfg = tiny_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("mini_coco_train",), ("mini_coco_val",)
    with pytest.raises(DataError, match=r"gradaug-det build-mini-coco --out .*mini_coco"):
        check_datasets(cfg)
    for name in MINI_COCO:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
