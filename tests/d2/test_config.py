"""GRADAUG.* keys: documented, validated, and refused with a sentence."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg

from gradaug_det.core.options import GradAugOptions
from gradaug_det.d2 import GradAugHook, add_gradaug_config, gradaug_options
from gradaug_det.d2.checks import check_batch, check_device, check_gpus, check_operators
from gradaug_det.d2.config import load_config, trained_options
from gradaug_det.errors import ConfigError, UnslimmableError

CONFIGS = Path(__file__).parents[2] / "configs" / "detectron2"


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_gradaug_config(cfg)
    return cfg


def test_every_option_is_a_key(cfg):
    names = {f.name.upper() for f in fields(GradAugOptions)}
    assert set(cfg.GRADAUG) == names | {"ENABLED"}
    assert GradAugHook(**vars(GradAugOptions())).options == GradAugOptions()


def test_defaults_are_plain_training(cfg):
    assert gradaug_options(cfg) == GradAugOptions(scales=[1.0, 0.857, 0.714, 0.571])
    assert GradAugHook.from_config(cfg) is None
    cfg.GRADAUG.ENABLED = True
    assert GradAugHook.from_config(cfg).options.num_subnets == 3


def test_a_plain_detector_can_be_cut_as_a_whole(cfg):
    assert trained_options(cfg) == GradAugOptions(num_subnets=0)
    cfg.GRADAUG.SLIM = "detector"
    options = trained_options(cfg)
    assert options.slim == "detector" and options.trained_width == 1 and not options.active
    cfg.GRADAUG.SLIM = "neck"
    with pytest.raises(ConfigError, match=r"GRADAUG.SLIM must be one of"):
        trained_options(cfg)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        (
            "NUM_SUBNET",
            2,
            "GRADAUG.NUM_SUBNET is not a GradAug setting; did you mean 'num_subnets'",
        ),
        ("num_subnets", 2, "GRADAUG.num_subnets is unknown; write keys as NUM_SUBNETS"),
        ("MIN_WIDTH", 0.0, r"GRADAUG.MIN_WIDTH must be a number in \(0, 1\], got 0.0"),
        ("MIN_WIDTH", 1.5, r"GRADAUG.MIN_WIDTH must be a number in \(0, 1\], got 1.5"),
        ("SCALES", [], r"GRADAUG.SCALES must list at least one number, got \[\]"),
        ("SCALES", [1.0, -1.0], r"GRADAUG.SCALES must be a number in \(0, 4\], got -1.0"),
        ("NUM_SUBNETS", 0, "GRADAUG.NUM_SUBNETS must be at least 1, got 0.*ENABLED to False"),
        ("NUM_SUBNETS", -2, "GRADAUG.NUM_SUBNETS must be at least 1, got -2"),
        ("FLIP_PROB", 2.0, r"GRADAUG.FLIP_PROB must be a number in \[0, 1\], got 2.0"),
        ("SUPERVISION", "hard", r"GRADAUG.SUPERVISION must be one of .*'soft'.*got 'hard'"),
        ("SOFT_WEIGHT", -1.0, r"GRADAUG.SOFT_WEIGHT must be a number in \[0, inf\), got -1.0"),
        ("LABELS_WEIGHT", -1.0, r"GRADAUG.LABELS_WEIGHT must be a number in \[0, inf\)"),
        ("SUBNET_NORM", "bn", "GRADAUG.SUBNET_NORM must be one of .*'frozen'.*got 'bn'"),
        ("SEED", 0.5, "GRADAUG.SEED must be an integer, got 0.5"),
        ("LOG_PERIOD", -1, "GRADAUG.LOG_PERIOD must be an integer of at least 0, got -1"),
        ("ENABLED", "yes", "GRADAUG.ENABLED must be True or False, got 'yes'"),
    ],
)
def test_a_bad_value_is_named(cfg, key, value, sentence):
    cfg.GRADAUG[key] = value
    with pytest.raises(ConfigError, match=sentence):
        gradaug_options(cfg)


def test_missing_node():
    with pytest.raises(ConfigError, match=r"GRADAUG is missing; call add_gradaug_config"):
        gradaug_options(get_cfg())


MINI = CONFIGS / "mini_mask_rcnn_R_18_FPN_gradaug.yaml"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["GRADAUG.MIN_WIDTH", "2.0"], r"GRADAUG.MIN_WIDTH .*\(0, 1\], got 2.0"),
        (["GRADAUG.WIDTH", "0.9"], "GRADAUG.WIDTH is not a GradAug setting"),
        (["GRADAUG.NUM_SUBNETS", "'two'"], "GRADAUG.NUM_SUBNETS"),
        (["MODEL.NO_SUCH_KEY", "1"], "MODEL.NO_SUCH_KEY"),
        (["GRADAUG.SEED"], "KEY VALUE pairs"),
        (["DATASETS.TRAIN", "('mine')"], r"DATASETS.TRAIN .*got 'mine'; write \('mine',\)"),
        (["DATASETS.TRAIN", "(1,)"], r"DATASETS.TRAIN must hold names in quotation marks .* 1 in"),
        (["SOLVER.STEPS", "50"], r"SOLVER.STEPS must be several values .*; write \(50,\)"),
        (["SOLVER.STEPS", "('a',)"], "SOLVER.STEPS must hold numbers alone, got 'a'"),
        (["SOLVER.STEPS", "None"], r"SOLVER.STEPS is empty; leave the line out .*\(30000,\)"),
        (["SOLVER.BASE_LR", "1"], r"BASE_LR must be a number with a .*got 1; write 1\.0"),
        (["SOLVER.BASE_LR", "fast"], "BASE_LR must be a number with a decimal point, got 'fast'"),
        (["MODEL.MASK_ON", "yes"], "MODEL.MASK_ON must be True or False, got 'yes'"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "'2'"], "NUM_CLASSES must be a whole number, got '2'"),
        (["SOLVER.AMP", "True"], "SOLVER.AMP must be a mapping of keys, got True"),
        (["INPUT.MASK_FORMAT", "rle"], "MASK_FORMAT must be polygon or bitmask, got 'rle'"),
        (["SOLVER.OPTIMIZER", "adamw"], "SOLVER.OPTIMIZER must be SGD or AdamW, got 'adamw'"),
    ],
)
def test_bad_overrides_are_sentences(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence):
        load_config(MINI, overrides)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("SOLVER.BASE_LR", "1e-3", 1e-3),  # which yaml takes for text
        ("DATASETS.TRAIN", "['a', 'b']", ("a", "b")),
        ("SOLVER.STEPS", "()", ()),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[32, 64]", [32, 64]),
        ("MODEL.PIXEL_MEAN", "[1, 2, 3.5]", [1, 2, 3.5]),
        ("MODEL.WEIGHTS", "None", None),
    ],
)
def test_odd_values_that_are_sound(key, text, value):
    node = load_config(MINI, [key, text])
    for part in key.split("."):
        node = node[part]
    assert node == value


def test_the_machine_is_compared():
    check_device("MODEL.DEVICE", "cpu")
    check_batch("SOLVER.IMS_PER_BATCH", 3)
    check_gpus(1)
    for device in (f"cuda:{torch.cuda.device_count()}", "gpu", "", None):
        with pytest.raises(ConfigError, match=r"MODEL.DEVICE is .*set it to cpu"):
            check_device("MODEL.DEVICE", device)
    with pytest.raises(ConfigError, match=r"SOLVER.AMP.ENABLED is True, .*AMP.ENABLED to False"):
        check_device("MODEL.DEVICE", "cpu", "SOLVER.AMP.ENABLED", True)
    with pytest.raises(ConfigError, match="--num-gpus is 99, but this machine has"):
        check_gpus(99)
    for size in (0, "2", None):
        with pytest.raises(ConfigError, match="IMS_PER_BATCH must be 1 or more, got"):
            check_batch("SOLVER.IMS_PER_BATCH", size)


def test_operators_that_a_pure_python_build_has_not_got(cfg):
    check_operators(cfg)
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, True, True, True]
    cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIAlignRotated"
    try:
        from detectron2._C import deform_conv_forward  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match=r"DEFORM_ON_PER_STAGE asks for what this pure-Py"):
            check_operators(cfg)
        cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
        with pytest.raises(ConfigError, match=r"ROI_BOX_HEAD.POOLER_TYPE asks for what"):
            check_operators(cfg)
    else:
        check_operators(cfg)


def test_missing_file():
    with pytest.raises(ConfigError, match="names a file that does not exist: nowhere"):
        load_config("nowhere.yaml")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_load_and_build(file):
    from detectron2.modeling import build_model

    cfg = load_config(file, ["MODEL.DEVICE", "cpu"])
    assert cfg.GRADAUG.ENABLED is ("gradaug" in file.name or "anywidth" in file.name)
    assert cfg.MODEL.BACKBONE.NAME.startswith("build_slimmable_")
    if "1x" in file.name:
        assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN) == ((600,), 1000)
    if not file.name.endswith("Base.yaml") and "Base" not in file.name:
        build_model(cfg)


def test_twins_differ_in_gradaug_alone():
    stems = ("mask_rcnn_R_50_FPN_1x", "mini_mask_rcnn_R_18_FPN", "mask_rcnn_R_50_FPN_1x")
    for stem, kind in zip(stems, ("gradaug", "gradaug", "anywidth"), strict=True):
        plain, gradaug = (load_config(CONFIGS / f"{stem}_{k}.yaml") for k in ("plain", kind))
        for cfg in (plain, gradaug):
            cfg.pop("GRADAUG")
            cfg.pop("OUTPUT_DIR")
        assert plain == gradaug


def test_the_demos_configs_differ_in_gradaug_backbone_and_length():
    plain, *others = (
        load_config(CONFIGS / f"demo_mask_rcnn_R_18_FPN_{kind}.yaml")
        for kind in ("plain", "gradaug", "anywidth")
    )
    for cfg in others:
        cfg.GRADAUG, cfg.OUTPUT_DIR = plain.GRADAUG, plain.OUTPUT_DIR
    gradaug, anywidth = others
    assert anywidth.MODEL.WEIGHTS == "gradaug://mini-resnet18-anywidth"
    anywidth.MODEL.WEIGHTS = plain.MODEL.WEIGHTS
    assert (gradaug.SOLVER.MAX_ITER, gradaug.SOLVER.STEPS) == (750, (562,))
    gradaug.SOLVER.MAX_ITER, gradaug.SOLVER.STEPS = plain.SOLVER.MAX_ITER, plain.SOLVER.STEPS
    assert plain == gradaug == anywidth


def test_a_backbone_that_cannot_be_slimmed_fails_when_it_is_built(cfg):
    from detectron2.modeling import build_backbone

    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_slimmable_resnet_backbone"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 64
    build_backbone(cfg)
    from gradaug_det.core.slimming import slim_plan
    from tests.d2.helpers import RegNetLike

    with pytest.raises(UnslimmableError, match=r"layer 'mix'.*'cat'"):
        slim_plan(RegNetLike())
