"""Images and annotations that are not as they should be, through Detectron2's own data path."""

import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import LazyCall, LazyConfig
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from omegaconf import OmegaConf

from gradaug_det.core.transforms import BatchTransform
from gradaug_det.d2 import GradAugHook
from gradaug_det.d2.checks import check_detector
from gradaug_det.d2.data import check_datasets, check_own_records, once_a_machine, register_coco
from gradaug_det.errors import ConfigError, DataError

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
    image = Path(MetadataCatalog.get(name).image_root) / "1.png"
    image.rename(image.with_name("1.PNG"))
    cause = r"upper and lower case differ; the images' folder has 1\.PNG"
    sentence = rf"'{name}': 1 of 2 image files are missing.*1\.png \({cause}\); correct"
    with pytest.raises(DataError, match=sentence):
        check_datasets(check)
    image.with_name("1.PNG").unlink()
    with pytest.raises(DataError, match=rf"'{name}': 1 of 2 .*1\.png; correct"):
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


BOLT, NUT = {"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}
RLE = {"size": [96, 128], "counts": [96 * 20, 96 * 40, 96 * 68]}


@pytest.fixture
def coco(tmp_path):
    """Registers a file of two images and four objects, changed; gives its name."""
    registered = []
    _, images = write_coco(tmp_path / "good", [GOOD, GOOD])

    def make(objects=None, categories=(BOLT, NUT), **changes):
        document = json.loads((tmp_path / "good" / "instances.json").read_text())
        document["categories"] = list(categories)
        for annotation_, change in zip(document["annotations"], objects or [{}] * 4, strict=False):
            annotation_.update(change)
        document.update(changes)
        name = f"agreement_{next(_names)}"
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(document))
        register_coco(name, file, images)
        registered.append(name)
        return name

    yield make
    for name in registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def config(train, test=(), classes=2, kind="mask_rcnn"):
    cfg = tiny_cfg(kind)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,) if isinstance(train, str) else train, test
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    cfg.INPUT.MASK_FORMAT = "bitmask"
    return cfg


@pytest.mark.parametrize(
    "change",
    [
        {"iscrowd": 1, "segmentation": RLE},
        {"bbox": [500, 500, 20, 20]},
        {"bbox": [10, 10, 0, 30]},
        {"segmentation": [[1, 1, 9, 9]]},
        {"segmentation": {"size": [96, 128], "counts": [96 * 128]}},
        {"image_id": 77},
    ],
    ids=["crowd", "outside", "no area", "no polygon", "no pixel", "no image"],
)
def test_nothing_left_to_learn_from_is_an_error(coco, change):
    with pytest.raises(DataError):
        check_datasets(config(coco([change] * 4)))
    check_datasets(config(coco([change])))  # one of four


def test_what_detectron2_keeps_is_counted():
    records = [
        {
            **{"file_name": __file__, "image_id": 1, "height": 9, "width": 9},
            "annotations": [
                {"bbox": [20, 1, 30, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": category}
            ],
        }
        for category in range(3)
    ]
    DatasetCatalog.register("own_function", lambda: records)
    try:
        with pytest.raises(DataError, match=r"'own_function': 0 of 3 .*3 without area in the im"):
            check_datasets(config("own_function", classes=3))
        for record in records:
            record["annotations"][0]["bbox"] = [1, 1, 5, 5]
        check_datasets(config("own_function", classes=3))
        with pytest.raises(ConfigError, match=r"NUM_CLASSES is 2, .*of class 2; set it to 3"):
            check_datasets(config("own_function", classes=2))
    finally:
        DatasetCatalog.remove("own_function")


def test_a_file_is_parsed_once_for_check_and_loader(coco):
    name = coco()
    cfg = config(name)
    assert check_datasets(cfg) == ("bolt", "nut")
    Path(MetadataCatalog.get(name).json_file).unlink()
    assert len(DatasetCatalog.get(name)) == 2
    assert check_datasets(cfg, again=False) == ("bolt", "nut")
    with pytest.raises(DataError, match="missing"):
        check_datasets(cfg)


@pytest.mark.parametrize(
    "others",
    [
        (NUT | {"id": 1}, BOLT | {"id": 2}),
        (BOLT, {"id": 2, "name": "screw"}),
        (BOLT, NUT, {"id": 3, "name": "washer"}),
    ],
)
def test_data_sets_agree_on_classes(coco, others):
    good, other = coco(), coco(categories=others)
    with pytest.raises(DataError, match=f"(?s)'{good}'.*'{other}'"):
        check_datasets(config((good, other)))
    with pytest.raises(DataError, match=f"(?s)'{good}'.*'{other}'"):
        check_datasets(config(good, (good, other)))


def test_ids_with_gaps_and_in_any_order_are_sound(coco):
    ids = [{"category_id": 13}, {"category_id": 90}] * 2
    wide = coco(ids, categories=({"id": 90, "name": "nut"}, {"id": 13, "name": "bolt"}))
    assert check_datasets(config((coco(), wide), (coco(),))) == ("bolt", "nut")


def test_number_of_classes(coco):
    name = coco()
    for kind, key in (("mask_rcnn", "ROI_HEADS"), ("retinanet", "RETINANET")):
        cfg = config(name, (name,), kind=kind)
        for count in (1, 3):
            cfg.MODEL[key].NUM_CLASSES = count
            sentence = rf"{key}.NUM_CLASSES is {count}, but the data has 2 classes \(bolt, nut\); s"
            with pytest.raises(ConfigError, match=sentence):
                check_datasets(cfg)
        cfg.DATASETS.TEST = ()
        check_datasets(cfg)  # 3, and nothing is scored


def test_every_head_is_compared():
    model = tiny_model("mask_rcnn")
    check_detector(model, "abc", scored=True)
    model.roi_heads.mask_head.predictor = torch.nn.Conv2d(16, 2, 1)
    with pytest.raises(ConfigError, match=r"detector's roi_heads.mask_head is 2, .* 3 classes"):
        check_detector(model, "abc", scored=False)
    dense = tiny_model("retinanet")
    dense.num_classes = 4
    with pytest.raises(ConfigError, match=r"the detector's num_classes is 4, .* 3 classes"):
        check_detector(dense, "abc", scored=True)
    check_detector(dense, "abc", scored=False)


def test_what_the_scorer_needs(coco):
    good, boxes = coco(), coco([{"segmentation": []}] * 4)
    with pytest.raises(DataError, match=f"'{boxes}'.*MODEL.MASK_ON False"):
        check_datasets(config(good, (boxes,)))
    check_datasets(config(boxes, (boxes,), kind="faster_rcnn"))
    with pytest.raises(DataError):
        check_datasets(config("no_such_set", (good,)))
    check_datasets(config("no_such_set", (good,)), eval_only=True)


def test_run_lengths_with_polygons_name_the_way_out(coco):
    cfg = config(coco([{"segmentation": RLE}] * 4))
    check_datasets(cfg)
    cfg.INPUT.MASK_FORMAT = "polygon"
    with pytest.raises(DataError, match=r"set INPUT.MASK_FORMAT bitmask"):
        check_datasets(cfg)


KEYPOINTS = {"keypoints": [12, 12, 2, 40, 40, 2, 30, 30, 1], "num_keypoints": 3}
ROD = BOLT | {
    "keypoints": ["left_end", "End Middle", "right_end"],
    "skeleton": [[1, 2], [2, 3], [1], 4],
}


def test_keypoints_come_from_the_file(coco):
    name = coco([KEYPOINTS | {"category_id": 1}] * 4, categories=[ROD])
    metadata = MetadataCatalog.get(name)
    assert metadata.keypoint_names == ROD["keypoints"]
    assert metadata.keypoint_flip_map == [("left_end", "right_end")]
    assert [rule[:2] for rule in metadata.keypoint_connection_rules] == [
        ("left_end", "End Middle"),
        ("End Middle", "right_end"),
    ]
    cfg = config(name, (name,), classes=1, kind="faster_rcnn")
    cfg.MODEL.KEYPOINT_ON = True
    with pytest.raises(ConfigError, match=r"NUM_KEYPOINTS is 17, .* names 3 .*set it to 3"):
        check_datasets(cfg)
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 3
    for sigmas in ([], [0.1] * 2):
        cfg.TEST.KEYPOINT_OKS_SIGMAS = sigmas
        with pytest.raises(ConfigError, match=r"SIGMAS .*\(0.05, 0.05, 0.05\)"):
            check_datasets(cfg)
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.1] * 3
    check_datasets(cfg)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.SOLVER.IMS_PER_BATCH = (96,), 2
    cfg.DATALOADER.NUM_WORKERS = 0
    hook = GradAugHook(num_subnets=1, supervision="labels", flip_prob=0.0)
    loader = build_detection_train_loader(cfg)  # mirrors some
    assert train(tiny_model(cfg=cfg), hook, steps=2, data=loader).iter == 2
    cfg.DATASETS.TEST, cfg.TEST.KEYPOINT_OKS_SIGMAS = (), []
    check_datasets(cfg)  # nothing is scored
    cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE = 99
    with pytest.raises(DataError, match="4 in images with too few visible keypoints"):
        check_datasets(cfg)
    for categories in ([ROD, NUT | {"keypoints": ["top"]}], [BOLT | {"keypoints": 17}, NUT]):
        cfg.DATASETS.TRAIN = (coco(categories=categories),)
        with pytest.raises(DataError, match="one list for all classes"):
            check_datasets(cfg)


def lazy(train, test=()):
    return OmegaConf.create(
        {
            "dataloader": {
                "train": {
                    "dataset": LazyCall(get_detection_dataset_dicts)(names=train),
                    "mapper": LazyCall(DatasetMapper)(
                        is_train=True, augmentations=[], image_format="BGR", use_instance_mask=True
                    ),
                },
                "evaluator": LazyCall(COCOEvaluator)(dataset_name=test),
            }
        },
        flags={"allow_objects": True},
    )


def test_lazy_configs_are_checked_like_yaml(coco, tmp_path):
    good, crowd_ = coco(), coco([{"iscrowd": 1, "segmentation": RLE}] * 4)
    other = coco(categories=(NUT | {"id": 1}, BOLT | {"id": 2}))
    assert check_datasets(lazy(good, good)) == ("bolt", "nut")
    assert check_datasets(lazy([good, good], good)) == ("bolt", "nut")
    for wrong in (
        lazy(crowd_, good),
        lazy([good, other], good),
        lazy(good, other),
        lazy("nowhere"),
    ):
        with pytest.raises(DataError):
            check_datasets(wrong)
    polygons = coco([{"segmentation": RLE}] * 4)
    with pytest.raises(DataError, match=r"set dataloader.train.mapper.instance_mask_format bitm"):
        check_datasets(lazy(polygons, good))
    own = LazyConfig.load  # a function of the user's own: nothing is known
    node = lazy("nowhere")
    node.dataloader.train.dataset = LazyCall(own)(names="nowhere")
    check_datasets(node)
    check_own_records(node, [{"annotations": [{"category_id": 0, "iscrowd": 0}]}])
    with pytest.raises(DataError, match=r"dataloader.train.dataset': 0 of 1 .*1 crowds"):
        check_own_records(node, [{"annotations": [{"category_id": 0, "iscrowd": 1}]}])


class OwnLoader(DefaultTrainer):
    """Whose mapper may make other classes of the data."""

    @classmethod
    def build_train_loader(cls, cfg):
        return build_detection_train_loader(cfg)


def test_the_hook_alone_checks(coco, tmp_path):
    def trains(cfg, kind=DefaultTrainer):
        cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = 0, False
        cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS = 1, 1, ()
        cfg.INPUT.MIN_SIZE_TRAIN = (64,)
        cfg.OUTPUT_DIR = str(tmp_path)
        trainer = kind(cfg)
        trainer.register_hooks([GradAugHook(num_subnets=1)])
        trainer.train()

    crowd_ = coco([{"iscrowd": 1, "segmentation": RLE}] * 4)
    for kind in (DefaultTrainer, OwnLoader):
        with pytest.raises(DataError, match=crowd_):
            trains(config(crowd_), kind)
    name = coco()
    trains(config(name))
    with pytest.raises(ConfigError, match="NUM_CLASSES is 1, but"):
        trains(config(name, classes=1))
    trains(config(name, classes=1), OwnLoader)  # a warning


def _checks(rank, address, out):
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    comm._LOCAL_PROCESS_GROUP = dist.new_group([0, 1])
    for number, error in enumerate((ConfigError("key", "is wrong"), KeyError("bug"), None)):

        def check(number=number, error=error):
            (Path(out) / f"ran-{number}-{rank}").touch()
            if error is not None:
                raise error
            return ("bolt",)

        try:
            result = once_a_machine(check)
        except Exception as caught:
            result = f"{type(caught).__name__}: {caught}"
        (Path(out) / f"{number}-{rank}").write_text(str(result))
    dist.destroy_process_group()


def test_one_process_of_a_machine_checks_and_all_hear_of_it(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    mp.spawn(_checks, (str(tmp_path / "address"), str(out)), nprocs=2)
    assert sorted(p.name for p in out.glob("ran-*")) == [f"ran-{n}-0" for n in range(3)]
    said = [[(out / f"{n}-{rank}").read_text() for rank in range(2)] for n in range(3)]
    assert said[0] == ["ConfigError: key is wrong"] * 2
    assert said[1] == ["GradAugError: KeyError: 'bug'"] * 2
    assert said[2] == ["('bolt',)"] * 2
