"""What a training would learn wrongly, or nothing from, is an error before the first step."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

import copy
import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from PIL import Image
from torchvision.models import resnet18

from gradaug_det.errors import ConfigError, DataError
from gradaug_det.evaluation.coco import Scoring
from gradaug_det.evaluation.coco_data import CocoData
from gradaug_det.mmdet.benchmark import _category_ids, _scoring
from gradaug_det.mmdet.checks import TrainingChecks, check_heads, check_tasks, check_weights
from gradaug_det.mmdet.config import load_config
from gradaug_det.mmdet.data import check_data
from gradaug_det.mmdet.train import build_runner
from gradaug_det.mmdet.values import check_values
from tests.mmdet.helpers import HOOK, KINDS, make_runner, tiny_model, tiny_model_cfg

FOLDER = Path(__file__).parents[2] / "configs" / "mmdet"
MINI = FOLDER / "mini_mask-rcnn_r18_fpn_plain.py"
CLASSES = ("a", "b", "c")
PIPELINE = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="Resize", scale=(128, 96), keep_ratio=True),
    dict(type="PackDetInputs"),
]


@pytest.fixture
def coco(tmp_path):
    """Writes an annotation file of two images with three objects each, after an edit."""
    for name in ("0.png", "1.png"):
        Image.new("RGB", (128, 96)).save(tmp_path / name)

    def write(edit=None, name="good"):
        content = {
            "images": [dict(id=i, file_name=f"{i}.png", width=128, height=96) for i in range(2)],
            "annotations": [
                dict(
                    id=1 + 3 * i + c,
                    image_id=i,
                    category_id=c,
                    bbox=[10, 10 + 20 * c, 40, 15],
                    area=600,
                    iscrowd=0,
                )
                for i in range(2)
                for c in range(3)
            ],
            "categories": [dict(id=c, name=name) for c, name in enumerate(CLASSES)],
        }
        if edit:
            edit(content)
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(content))
        return str(file)

    return write


def dataset(file, classes=CLASSES, **settings):
    metainfo = dict(classes=classes) if classes else None
    images = dict(img=str(Path(file).parent))
    given = dict(type="CocoDataset", ann_file=file, data_prefix=images, metainfo=metainfo)
    return given | dict(pipeline=PIPELINE) | settings


def config(train, val=None, evaluator=None):
    loaders = dict(train_dataloader=dict(dataset=train))
    if val:
        loaders |= dict(val_dataloader=dict(dataset=val), val_evaluator=evaluator)
    return Config(loaders)


def scored(file, **settings):
    return dict(type="CocoMetric", ann_file=file, metric="bbox") | settings


def each(change):
    def edit(content):
        for annotation in content["annotations"]:
            annotation.update(change)

    return edit


# ---- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("train_cfg.max_iters", "2", r"whole number from 1 on, got '2'"),
        ("train_dataloader.batch_size", 0, r"from 1 on, got 0"),
        ("train_dataloader.num_workers", -1, r"from 0 on, got -1"),
        ("model.roi_head.bbox_head.num_classes", "2", r"whole number"),
        ("model.roi_head.mask_head.num_classes", 2.0, r"whole number"),
        ("optim_wrapper.optimizer.lr", "0.01", r"must be a number, got '0\.01'"),
        ("optim_wrapper.optimizer.type", "SGDD", r"did you mean 'SGD'"),
        ("optim_wrapper", None, r"is missing"),
        ("custom_hooks", dict(type="GradAugHook"), r"must be a list of dicts"),
        ("train_dataloader.dataset.type", "CocoDatset", r"did you mean 'CocoDataset'"),
        ("train_dataloader.dataset.ann_file", ["a.json", "b.json"], r"type='ConcatDataset'"),
        ("train_dataloader.dataset.ann_file", 3, r"must be a path, got 3"),
        ("train_dataloader.dataset.data_prefix", "images/", r"dict\(img='images/'\)"),
        ("train_dataloader.dataset.metainfo", ["a"], r"dict\(classes="),
        ("train_dataloader.dataset.pipeline", dict(type="PackDetInputs"), r"a list of dicts"),
        ("train_dataloader.dataset.pipeline", [dict(type="Resise")], r"did you mean 'Resize'"),
        ("train_dataloader.dataset.pipeline", [None], r"must be a dict, got None"),
        ("launcher", "pytorch", r"torchrun"),
    ],
)
def test_values_that_cannot_be_used(mini, key, value, sentence):
    *parents, last = key.split(".")
    node = mini
    for parent in parents:
        node = node[parent]
    node[last] = value
    with pytest.raises(ConfigError, match=f"^{key}.*{sentence}"):
        check_values(mini)


@pytest.fixture(scope="module")
def loaded():
    return load_config(MINI)


@pytest.fixture
def mini(loaded):
    return copy.deepcopy(loaded)


def test_configs_that_pass(mini):
    check_values(mini)
    mini.val_dataloader = mini.val_evaluator = mini.val_cfg = None
    mini.train_dataloader.dataset.data_prefix = dict(img="")
    check_values(mini)


def test_half_precision_needs_a_gpu(mini):
    mini.optim_wrapper.type = "AmpOptimWrapper"
    wrong = pytest.raises(ConfigError, match=r"optim_wrapper\.type is AmpOptimW.*'OptimWrapper'")
    with nullcontext() if torch.cuda.is_available() else wrong:
        check_values(mini)


def test_what_mmengine_cannot_build_is_a_sentence(tmp_path):
    with pytest.raises(ConfigError, match=r"^config cannot be used: KeyError.*MaskRCNNN"):
        build_runner(MINI, tmp_path, {"model.type": "MaskRCNNN"})


# ---- classes, files, scorers ------------------------------------------------------------------


def unsorted(content):
    content["categories"].reverse()


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        (("b", "a", "c"), r"in the order of .*classes=\('a', 'b', 'c'\)"),
        (("a", "b", "C"), r"names 'C', which is no category of .*classes=\('a', 'b', 'c'\)"),
        (("a ", "b", "c"), r"names 'a '"),
        (None, r"is not given, and COCO's 80 are not"),
        ("a", r"write \('a',\) with a comma"),
        ((1, 2), r"tuple of names"),
    ],
)
@pytest.mark.parametrize("wrapper", ["", "Repeat", "nested"])
def test_classes_that_are_not_the_files(coco, classes, sentence, wrapper):
    train, key = dataset(coco(), classes), "train_dataloader.dataset"
    if wrapper == "Repeat":
        train, key = dict(type="RepeatDataset", times=2, dataset=train), f"{key}.dataset"
    elif wrapper:
        two = dict(type="ClassBalancedDataset", oversample_thr=0.1, dataset=train)
        train = dict(type="ConcatDataset", datasets=[dataset(coco()), two])
        train = dict(type="MultiImageMixDataset", pipeline=[], dataset=train)
        key += ".dataset.datasets.1.dataset"
    with pytest.raises(ConfigError, match=rf"^{key}\.metainfo\.classes .*{sentence}"):
        check_data(config(train))


def test_classes_that_pass(coco, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(CLASSES))
    for classes in (CLASSES, list(CLASSES), ("a", "c"), str(names)):
        check_data(config(dataset(coco(), classes)))

    def last_is_gone(content):
        content["categories"].pop()
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] < 2]

    both = [dataset(coco()), dataset(coco(last_is_gone, "part"))]
    check_data(config(dict(type="ConcatDataset", datasets=both)))
    check_data(config(dataset("elsewhere.json", type="LVISV1Dataset", ann_file="", data_prefix={})))


def test_splits_that_do_not_agree(coco):
    train, other = dataset(coco()), coco(unsorted, "other")
    with pytest.raises(ConfigError, match=r"^val_d.*give that file all categories, in the order"):
        check_data(config(train, dataset(other), scored(other)))
    with pytest.raises(DataError, match=r"class 0 is 'a' in train_d.* and 'c' in val_d"):
        check_data(config(train, dataset(other, CLASSES[::-1]), scored(other)))
    with pytest.raises(ConfigError, match=r"^val_dataloader\..*COCO's 80"):
        check_data(config(train, dataset(coco(), None), scored(coco())))


def test_what_the_scorer_needs(coco):
    good = dataset(coco())

    def no_crowd(content):
        for annotation in content["annotations"]:
            del annotation["iscrowd"]

    def other_ids(content):
        for one in content["images"]:
            one["id"] += 7
        for one in content["annotations"]:
            one["image_id"] += 7

    lacking, other = coco(no_crowd, "lacking"), coco(other_ids, "other")
    check_data(config(dataset(lacking), good, scored(coco())))  # trains without
    for val, evaluator, error, sentence in (
        (dataset(lacking), scored(lacking), DataError, "val_dataloader.*iscrowd-missing"),
        (good, scored(lacking), DataError, "val_evaluator.*iscrowd-missing"),
        (good, scored(other), DataError, "val_evaluator: image 0 .* is missing in .*other"),
        (good, [scored(coco(unsorted, "o"))], ConfigError, r"val_evaluator\.0.*in the order"),
        (good, scored(coco(), metric="segm"), DataError, "no-segmentations"),
        (good, scored(coco(), metric=["box"]), ConfigError, r"metric must be .*got 'box'"),
        (good, scored(coco(), proposal_nums=(1, 10, 50)), ConfigError, "with 100 among them"),
        (good, scored("gone.json"), DataError, "gone.json is missing; correct val_evaluator"),
        (good, scored(None), ConfigError, "val_evaluator.ann_file is missing"),
    ):
        with pytest.raises(error, match=sentence):
            check_data(config(good, val, evaluator))
    check_data(config(good, dataset(lacking), scored(coco())))  # which reads another file


def test_tasks():
    boxes, masks = (MODELS.build(tiny_model_cfg(kind)) for kind in ("retinanet", "mask_rcnn"))
    asks = config({}, dict(type="x"), scored("x", metric=["bbox", "segm"]))
    check_tasks(masks, asks)
    with pytest.raises(ConfigError, match=r"val_evaluator\.metric asks for 'segm', but RetinaNet"):
        check_tasks(boxes, asks)


def test_the_benchmark_scores_as_the_config(mini):
    assert _scoring(mini) == Scoring(tasks=("bbox", "segm"), max_detections=100)
    mini.model.test_cfg.rcnn.max_per_img = 200
    mini.test_evaluator.metric = "bbox"
    assert _scoring(mini) == Scoring(tasks=("bbox",), max_detections=200)
    mini.test_evaluator.proposal_nums = (1, 10, 100)
    assert _scoring(mini).max_detections == 100
    mini.test_evaluator = None
    assert _scoring(mini).tasks is None


def test_the_benchmark_maps_classes_by_name(coco):
    settings = Config(dict(test_dataloader=dict(dataset=dataset(coco(), ("b", "a")))))

    def data(*names):
        categories = [dict(id=key, name=name) for key, name in zip((4, 7), names, strict=True)]
        return CocoData(dict(images=[], annotations=[], categories=categories), Path(coco()))

    assert _category_ids(settings, data("a", "b")) == [7, 4]
    with pytest.raises(DataError, match=r"class 1 is 'a' in test_dataloader\.dataset and 'c' in"):
        _category_ids(settings, data("b", "c"))


# ---- what is left to learn from ---------------------------------------------------------------


@pytest.fixture(scope="module")
def retinanet():
    return tiny_model("retinanet")


def training(model, tmp_path, train, hook=None):
    loader = dict(
        batch_size=1,
        sampler=dict(type="DefaultSampler", shuffle=False),
        dataset=train,
        collate_fn=dict(type="pseudo_collate"),
    )
    return make_runner(model, tmp_path, hook, train_dataloader=loader)


def looked_at(runner):
    assert runner.train_loop.dataloader is not None  # builds it
    TrainingChecks().before_run(runner)


def steps(*more, **load):
    read = dict(type="LoadAnnotations", with_bbox=True) | load
    return [PIPELINE[0], read, PIPELINE[2], *more, PIPELINE[3]]


@pytest.mark.parametrize(
    ("edit", "settings", "sentence"),
    [
        (each(dict(iscrowd=1)), {}, "no-objects-left"),
        (each(dict(bbox=[10, 10, 0.5, 30])), {}, "no-objects-left"),
        (None, dict(pipeline=steps(with_bbox=False)), "leaves no box"),
        (None, dict(pipeline=[PIPELINE[0], *PIPELINE[2:]]), "leaves no box"),
        (
            None,
            dict(pipeline=steps(dict(type="FilterAnnotations", min_gt_bbox_wh=(99, 99)))),
            "leaves no box of the objects of 2 images",
        ),
    ],
)
def test_nothing_to_learn_from(coco, retinanet, tmp_path, edit, settings, sentence):
    """Through the hook alone, as MMDetection's own tools use it."""
    runner = training(retinanet, tmp_path, dataset(coco(edit), **settings), HOOK)
    with pytest.raises(DataError, match=rf"train_dataloader\.dataset.*{sentence}"):
        runner.train()
    assert runner.iter == 0


def test_a_part_that_teaches_nothing(coco, retinanet, tmp_path):
    crowds = coco(each(dict(iscrowd=1)), "crowds")
    parts = [dataset(coco()), dataset(crowds, lazy_init=True)]
    with pytest.raises(DataError, match=r"datasets\.1: 0 of 6 objects are left"):
        looked_at(training(retinanet, tmp_path, dict(type="ConcatDataset", datasets=parts)))
    background = coco(lambda content: content["annotations"].clear(), "background")
    parts[1] = dataset(background)
    looked_at(training(retinanet, tmp_path, dict(type="ConcatDataset", datasets=parts)))


def test_no_image_is_left(coco, tmp_path):
    images = str(Path(coco()).parent)
    file = dict(ann_file=coco(), data_prefix=dict(img=images), metainfo=dict(classes=CLASSES))
    heads = dict.fromkeys(
        ("model.roi_head.bbox_head.num_classes", "model.roi_head.mask_head.num_classes"), 3
    )
    settings = heads | {
        "train_dataloader.dataset": dict(data_root="", filter_cfg=dict(min_size=500), **file),
        "train_dataloader.dataset.pipeline": PIPELINE,
        "model.backbone.init_cfg": None,
    }
    no_val = dict.fromkeys(("val_dataloader", "val_evaluator", "val_cfg"))
    no_test = dict.fromkeys(("test_dataloader", "test_evaluator", "test_cfg"))
    with pytest.raises(ConfigError, match=r"train_dataloader cannot .* no image is left"):
        build_runner(MINI, tmp_path / "out", settings | no_val | no_test).train()


def test_most_of_a_class_is_lost(coco, retinanet, tmp_path, caplog):
    def lose(content):
        for annotation in content["annotations"]:
            annotation["iscrowd"] = int(annotation["category_id"] == 1)
        content["annotations"] *= 4
        for index, annotation in enumerate(content["annotations"]):
            content["annotations"][index] = annotation | dict(id=index + 1)

    looked_at(training(retinanet, tmp_path, dataset(coco(lose))))
    assert "only 0 of 8 of 'b' are left to learn from" in caplog.text


def test_looking_changes_no_random_number(coco, retinanet, tmp_path):
    flips = [*PIPELINE[:3], dict(type="RandomFlip", prob=0.5), PIPELINE[3]]
    torch.manual_seed(3)
    runner = training(retinanet, tmp_path, dataset(coco(), pipeline=flips))
    assert runner.train_loop.dataloader is not None
    before = torch.get_rng_state()
    TrainingChecks().before_run(runner)
    assert torch.equal(before, torch.get_rng_state())


# ---- heads and weights ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_head_has_the_datas_classes(kind):
    model = MODELS.build(tiny_model_cfg(kind))
    check_heads(model, 3)
    with pytest.raises(ConfigError, match=r"model\..*bbox_head.*num_classes is 3, but .*names 4"):
        check_heads(model, 4)


def test_one_wrong_head_of_several():
    cfg = tiny_model_cfg("cascade_mask_rcnn")
    cfg.roi_head.bbox_head[1].num_classes = 80
    with pytest.raises(ConfigError, match=r"^model\.roi_head\.bbox_head\.1\.num_classes is 80"):
        check_heads(MODELS.build(cfg), 3)
    cfg = tiny_model_cfg("mask_rcnn")
    cfg.roi_head.mask_head.num_classes = 80
    with pytest.raises(ConfigError, match=r"^model\.roi_head\.mask_head\.num_classes is 80"):
        check_heads(MODELS.build(cfg), 3)
    cfg.roi_head.mask_head.class_agnostic = True  # its number is not used
    check_heads(MODELS.build(cfg), 3)


@pytest.mark.parametrize(
    ("start", "settings", "error"),
    [
        ("", {}, None),
        ("module.", {}, None),
        ("backbone.", dict(prefix="backbone."), None),
        ("module.encoder_q.", {}, "it has 'encoder_q.conv1.weight', wanted is 'conv1.weight'"),
        ("backbone.", {}, "or set prefix"),
        ("", dict(prefix="backbone."), "random weights; convert .*gradaug-det zoo convert"),
    ],
)
def test_weights_of_which_nothing_is_taken(tmp_path, start, settings, error):
    file = tmp_path / "weights.pth"
    state = resnet18(weights=None).state_dict()
    torch.save({"state_dict": {start + name: value for name, value in state.items()}}, file)
    cfg = tiny_model_cfg("retinanet")
    cfg.backbone.init_cfg = dict(type="Pretrained", checkpoint=str(file), **settings)
    runner = make_runner(MODELS.build(cfg), tmp_path)
    if error is None:
        check_weights(runner)
        return
    with pytest.raises(ConfigError, match=rf"^model\.backbone\.init_cfg\.checkpoint .*{error}"):
        check_weights(runner)


def test_a_backbone_as_load_from(tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(resnet18(weights=None).state_dict(), file)
    model = MODELS.build(tiny_model_cfg("retinanet"))
    with pytest.raises(ConfigError, match=r"^load_from .*load_from is for whole detectors"):
        check_weights(make_runner(model, tmp_path, load_from=str(file)))
    torch.save(model.state_dict(), file)
    check_weights(make_runner(model, tmp_path, load_from=str(file)))
