"""The config files: what they inherit, what differs in a pair, and that they train."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

import os
import subprocess
import sys
from pathlib import Path

import mmdet
import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from gradaug_det.errors import ConfigError, DataError
from gradaug_det.mini_coco import CLASS_NAMES, build_mini_coco
from gradaug_det.mmdet.config import load_config
from gradaug_det.mmdet.detector import GradAugDetector
from gradaug_det.mmdet.train import build_runner
from tests.mmdet.helpers import TinyDataset, tiny_model_cfg

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "mmdet"
OURS = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.endswith("_plain"))
MMDET_TRAIN = Path(mmdet.__file__).parent / ".mim" / "tools" / "train.py"


@pytest.fixture(scope="module")
def mini_coco(tmp_path_factory):
    return build_mini_coco(tmp_path_factory.mktemp("data") / "mini_coco", train=8, val=4)


@pytest.mark.parametrize("name", OURS)
def test_a_pair_differs_in_gradaug_alone(name):
    """Of the demo's in their schedules, too, or in their backbones."""
    plain = load_config(FOLDER / f"{name.rpartition('_')[0]}_plain.py").to_dict()
    ours = load_config(FOLDER / f"{name}.py").to_dict()
    assert ours.pop("custom_imports")["imports"] == ["gradaug_det.mmdet"]
    imported = plain.pop("custom_imports", None)  # for a backbone of the zoo
    assert (imported is not None) == ("gradaug://" in str(plain["model"]["backbone"]))
    hook = HOOKS.build(ours.pop("custom_hooks")[0])
    assert hook.options.active
    assert "custom_hooks" not in plain
    assert plain["model"]["backbone"].pop("type") == "ResNet"
    assert ours["model"]["backbone"].pop("type") == "SlimmableResNet"
    for config in (ours, plain) if name.startswith("demo") else ():
        del config["train_cfg"], config["param_scheduler"], config["model"]["backbone"]["init_cfg"]
    assert ours == plain


@pytest.mark.parametrize("name", OURS)
def test_the_detector_can_be_trained_with_gradaug(name):
    config = load_config(FOLDER / f"{name}.py")
    model = MODELS.build(config.model)
    GradAugDetector(model, HOOKS.build(config.custom_hooks[0]).options)
    depth = 18 if "r18" in name else 50
    assert model.backbone.depth == depth


def test_class_names_are_mini_cocos():
    config = load_config(FOLDER / "mini_mask-rcnn_r18_fpn_plain.py")
    assert tuple(config.metainfo.classes) == CLASS_NAMES
    assert config.model.roi_head.bbox_head.num_classes == len(CLASS_NAMES)


SHORT = {"train_cfg.max_iters": 2, "model.backbone.init_cfg": None}


def data_overrides(folder):
    loaders = [f"{split}_dataloader.dataset.data_root" for split in ("train", "val", "test")]
    evaluators = [f"{split}_evaluator.ann_file" for split in ("val", "test")]
    annotations = f"{folder}/annotations/instances_val.json"
    return dict.fromkeys(loaders, f"{folder}/") | dict.fromkeys(evaluators, annotations)


@pytest.mark.integration
def test_the_mini_pair_trains_and_evaluates(mini_coco, tmp_path):
    for kind in ("plain", "gradaug"):
        runner = build_runner(
            FOLDER / f"mini_mask-rcnn_r18_fpn_{kind}.py",
            tmp_path / kind,
            SHORT | data_overrides(mini_coco) | {"default_hooks.checkpoint.interval": 2},
        )
        runner.train()
        scalars = runner.message_hub.log_scalars
        assert ("train/gradaug/sub1/loss" in scalars) == (kind == "gradaug")
        assert "val/coco/segm_mAP" in scalars
        assert (tmp_path / kind / "iter_2.pth").is_file()


@pytest.mark.integration
def test_mmdetections_own_tool_trains_the_config(mini_coco, tmp_path):
    """``mim train mmdet CONFIG`` runs this very file."""
    options = [f"{k}={v}" for k, v in (SHORT | data_overrides(mini_coco)).items()]
    config = FOLDER / "mini_mask-rcnn_r18_fpn_gradaug.py"
    command = [sys.executable, MMDET_TRAIN, config, "--work-dir", tmp_path, "--cfg-options"]
    command += [*options, "custom_hooks.0.num_subnets=1", "default_hooks.logger.interval=1"]
    result = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | dict(OMP_NUM_THREADS="1"),
    )
    assert result.returncode == 0, result.stderr[-3000:]
    log = next(tmp_path.glob("*/*.log")).read_text()
    assert "gradaug/sub0/loss: " in log and "gradaug/sub1" not in log
    assert "coco/segm_mAP: " in log


def test_new_style_config(tmp_path):
    """MMEngine's pure Python configs name classes, not strings."""
    file = tmp_path / "config.py"
    file.write_text(
        "from mmengine.config import read_base\n"
        "from mmengine.optim import OptimWrapper\n"
        "from torch.optim import SGD\n"
        "from gradaug_det.mmdet import GradAugHook, SlimmableResNet\n"
        "with read_base():\n    from .other import *\n"
        "backbone = dict(type=SlimmableResNet, depth=18)\n"
        "custom_hooks = [dict(type=GradAugHook, num_subnets=2, min_width=0.7)]\n"
        "train_cfg = dict(by_epoch=True, max_epochs=1)\n"
        "optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01))\n"
    )
    (tmp_path / "other.py").write_text("default_scope = 'mmdet'\n")
    config = Config.fromfile(file, lazy_import=True)
    model = tiny_model_cfg("retinanet")
    model.backbone.type = config.backbone.type
    runner = Runner(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=dict(
            batch_size=2,
            sampler=dict(type="DefaultSampler", shuffle=False),
            dataset=TinyDataset(length=2),
            collate_fn=dict(type="pseudo_collate"),
        ),
        train_cfg=config.train_cfg,
        optim_wrapper=config.optim_wrapper,
        custom_hooks=config.custom_hooks,
        default_scope=config.default_scope,
        experiment_name="new_style",
        log_level="ERROR",
    )
    runner.train()
    assert runner.message_hub.get_scalar("train/gradaug/sub1/width").current() == 0.7
    assert all(p.isfinite().all() for p in runner.model.parameters())
    assert type(runner.model.backbone).__name__ == "SlimmableResNet"


def test_errors_name_what_to_do(tmp_path):
    file = FOLDER / "mini_mask-rcnn_r18_fpn_gradaug.py"
    with pytest.raises(ConfigError, match="does not exist: nowhere"):
        load_config("nowhere.py")
    with pytest.raises(ConfigError, match="overrides cannot be used"):
        load_config(file, {"custom_hooks.3.seed": 1})
    missing = {
        "train_dataloader.dataset.data_root": str(tmp_path / "mini_coco"),
        "model.backbone.init_cfg": None,
    }
    with pytest.raises(DataError, match=r"train_dataloader: .*build-mini-coco --out"):
        build_runner(file, tmp_path, missing)
    with pytest.raises(DataError, match=r"correct train_dataloader\.dataset\.data_root"):
        build_runner(FOLDER / "retinanet_r50_fpn_1x_coco_plain.py", tmp_path)
