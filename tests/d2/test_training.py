"""tools/train_net.py, DefaultTrainer and LazyConfig on a small dataset, end to end."""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog

from gradaug_det.d2 import GradAugHook
from gradaug_det.d2.config import load_config
from gradaug_det.d2.train import Trainer, run

from .dataset import annotation, write_coco
from .helpers import tiny_cfg

ROOT = Path(__file__).parents[2]
TRAIN_NET = str(ROOT / "tools" / "train_net.py")
CONFIGS = ROOT / "configs" / "detectron2"
TINY = {
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.STEPS": "(3,)",
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "GRADAUG.LOG_PERIOD": 1,
    "MODEL.WEIGHTS": "",
    # Random weights have no statistics to freeze.
    "MODEL.RESNETS.NORM": "GN",
}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    boxes = [annotation(10, 10, 40, 50), annotation(60, 20, 50, 60, category=2)]
    return write_coco(tmp_path_factory.mktemp("coco") / "data", [boxes, boxes, boxes[:1], boxes])


def flags(config, coco, out, *extra, **opts):
    opts = {**TINY, **opts, "OUTPUT_DIR": out}
    opts |= {"DATASETS.TRAIN": "('t_train',)", "DATASETS.TEST": "('t_val',)"}
    pairs = [str(x) for pair in opts.items() for x in pair]
    file, images = map(str, coco)
    registered = ["--register", "t_train", file, images, "--register", "t_val", file, images]
    return ["--config-file", str(CONFIGS / f"{config}.yaml"), *registered, *extra, *pairs]


def train_net(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "ignore", TRAIN_NET, *arguments], capture_output=True, text=True
    )


def sub_networks(result):
    """iteration -> widths and scales, from the log lines."""
    lines = re.findall(r"GradAug iter (\d+): (.*)", result.stdout + result.stderr)
    return {int(t): re.findall(r"width (\S+) scale (\S+)", line) for t, line in lines}


def scalars(out):
    """Last logged value of each scalar but the times."""
    rows = [json.loads(line) for line in (Path(out) / "metrics.json").read_text().splitlines()]
    merged = {k: v for row in rows for k, v in row.items()}
    return {k: v for k, v in merged.items() if "time" not in k}


def test_train_resume_evaluate(coco, tmp_path):
    """Resuming samples the sub-networks that the uninterrupted training samples."""
    gradaug = "mini_mask_rcnn_R_18_FPN_gradaug"
    whole = train_net(*flags(gradaug, coco, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    assert "gradaug/sub0/loss" in scalars(tmp_path / "whole")
    assert {"bbox/AP", "segm/AP"} <= set(scalars(tmp_path / "whole"))

    halves = tmp_path / "halves"
    first = train_net(*flags(gradaug, coco, halves))
    assert first.returncode == 0, first.stderr
    (halves / "last_checkpoint").write_text("model_0000001.pth")  # as if killed after two steps
    second = train_net(*flags(gradaug, coco, halves, "--resume"))
    assert second.returncode == 0, second.stderr
    assert "Starting training from iteration 2" in second.stdout + second.stderr

    sampled = sub_networks(whole)
    assert len(sampled) == 4
    assert sub_networks(second) == {t: sampled[t] for t in (2, 3)}

    final = tmp_path / "whole" / "model_final.pth"
    only = train_net(
        *flags(gradaug, coco, tmp_path / "eval", "--eval-only", **{"MODEL.WEIGHTS": final})
    )
    assert only.returncode == 0, only.stderr
    predictions = "inference/t_val/coco_instances_results.json"
    assert (tmp_path / "eval" / predictions).read_text() == (
        tmp_path / "whole" / predictions
    ).read_text()


@pytest.mark.integration
def test_two_processes_of_torchrun_and_their_exact_resume(coco, tmp_path):
    """Of alternating passes: the steps before the break and after it are full and narrow."""
    opts = {"GRADAUG.PASSES": "alternating", "GRADAUG.NUM_SUBNETS": 3, "GRADAUG.FULL_SHARE": 0.5}
    opts |= {"GRADAUG.WIDTHS": "[0.5]", "GRADAUG.SEED": 1}

    def torchrun(out, *extra):
        command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc_per_node=2", "-m", "tests.d2.torchrun_worker"]
        config = "mini_mask_rcnn_R_18_FPN_gradaug"
        result = subprocess.run(
            [*command, *flags(config, coco, out, *extra, **opts)],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return torch.load(out / "model_final.pth", weights_only=True)["model"]

    whole = torchrun(tmp_path / "whole")
    assert {"bbox/AP", "gradaug/w1/loss", "gradaug/w0.5/loss"} <= set(scalars(tmp_path / "whole"))
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(tmp_path / "whole" / "model_0000001.pth", half)
    (half / "last_checkpoint").write_text("model_0000001.pth")
    resumed = torchrun(half, "--resume")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("opts", "sentence"),
    [
        (
            {"GRADAUG.MIN_WIDTH": 3.0},
            "error: GRADAUG.MIN_WIDTH must be a number in (0, 1], got 3.0",
        ),
        ({"GRADAUG.SCALE": "[1.0]"}, "error: GRADAUG.SCALE is not a GradAug setting; did you mean"),
        (
            {"GRADAUG.SUBNET_NORM": "batch"},
            "error: GRADAUG.SUBNET_NORM is 'batch', which needs BatchNorm",
        ),
    ],
)
def test_errors_are_one_sentence(coco, tmp_path, opts, sentence):
    opts = {**opts, "MODEL.RESNETS.NORM": "FrozenBN"}
    result = train_net(*flags("mini_mask_rcnn_R_18_FPN_gradaug", coco, tmp_path, **opts))
    assert result.returncode == 2
    assert sentence in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(("processes", "factor"), [(16, 0.5), (8, 1), (1, 8)])
def test_iterations_are_scaled_to_the_processes(processes, factor):
    cfg = load_config(CONFIGS / "mask_rcnn_R_50_FPN_1x_anywidth.yaml", [])
    cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.GRADAUG.STOP = 8, 80000
    assert not Trainer.auto_scale_workers(cfg, processes).is_frozen()
    cfg.freeze()
    scaled = Trainer.auto_scale_workers(cfg, processes)
    assert scaled.is_frozen() and 90000 * factor == scaled.SOLVER.MAX_ITER
    assert [scaled.GRADAUG[key] for key in ("START", "STOP", "SOFT_WARMUP")] == [
        45000 * factor,
        80000 * factor,
        0,
    ]
    assert cfg.GRADAUG.START == 45000


@pytest.mark.parametrize(("clipped", "largest"), [(False, 1.0), (True, 0.5)])
def test_adamw_has_the_rates_and_decays_of_detectron2(clipped, largest):
    """In the first step every weight moves by its rate, whatever the gradient, and decays."""
    cfg = tiny_cfg()
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = "AdamW", 0.5, 0.25
    cfg.SOLVER.BIAS_LR_FACTOR, cfg.SOLVER.WEIGHT_DECAY_BIAS = 2.0, 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = clipped
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.5
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.ones_(layer.weight), torch.nn.init.ones_(layer.bias)
    optimizer = Trainer.build_optimizer(cfg, layer)
    assert isinstance(optimizer, torch.optim.AdamW)
    layer(torch.ones(1, 1)).backward()
    optimizer.step()
    found = [layer.weight.item(), layer.bias.item()]
    assert found == pytest.approx([1 - 0.5 * 0.25 - 0.5, 1 - 2 * 0.5], abs=1e-6)
    moments = [state["exp_avg"].item() for state in optimizer.state.values()]
    assert moments == pytest.approx([0.1 * largest] * 2)


def test_default_trainer_with_the_hook(coco, tmp_path):
    """Plain DefaultTrainer and one registered hook: no gradaug trainer needed."""
    from detectron2.engine import DefaultTrainer

    from gradaug_det.d2.data import register_coco

    register_coco("default_train", *coco)
    try:
        cfg = tiny_cfg("mask_rcnn", norm="GN")
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("default_train",), ()
        cfg.DATALOADER.NUM_WORKERS = 0
        cfg.INPUT.MIN_SIZE_TRAIN = (64,)
        cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER = 2, 2
        cfg.OUTPUT_DIR = str(tmp_path)
        trainer = DefaultTrainer(cfg)
        trainer.register_hooks([GradAugHook(num_subnets=1, scales=[0.75])])
        trainer.train()
        assert trainer.storage.latest()["gradaug/sub0/scale"] == (0.75, 1)
        assert "_write_metrics" not in vars(trainer._trainer)
        own = [type(hook).__name__ for hook in Trainer(enable(cfg))._hooks]
        assert own[:2] == ["ExactResume", "GradAugHook"]
    finally:
        DatasetCatalog.remove("default_train")
        MetadataCatalog.remove("default_train")


def enable(cfg):
    cfg = cfg.clone()
    cfg.GRADAUG.ENABLED = True
    return cfg


def lazy_arguments(file, opts, **changes):
    defaults = {
        "config_file": str(file),
        "opts": opts,
        "register": [],
        "eval_only": False,
        "resume": False,
        "num_gpus": 0,
    }
    return argparse.Namespace(**{**defaults, **changes})


LAZY = """
from detectron2.config import LazyConfig, LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BasicBlock

base = LazyConfig.load({config!r})
model, dataloader, optimizer = base.model, base.dataloader, base.optimizer
lr_multiplier, train, gradaug = base.lr_multiplier, base.train, base.gradaug

model.backbone.bottom_up.stem.norm = "GN"
model.backbone.bottom_up.stages.norm = "GN"
model.backbone.norm = ""
train.device = "cpu"
train.init_checkpoint = ""
train.max_iter = 2
train.eval_period = 0
train.output_dir = {out!r}
train.log_period = 1
dataloader.train.dataset.names = "lazy_train"
dataloader.train.num_workers = 0
dataloader.train.total_batch_size = 1
dataloader.train.mapper.augmentations = dataloader.train.mapper.augmentations[:1]
dataloader.train.mapper.augmentations[0].short_edge_length = 64
dataloader.train.mapper.augmentations[0].max_size = 96
del dataloader["evaluator"]
gradaug.num_subnets = 1
gradaug.scales = [0.75]
"""


def test_lazy_config(coco, tmp_path):
    """Detectron2's own Mask R-CNN LazyConfig with `gradaug` added, trained by its habits."""
    base = str(CONFIGS / "mask_rcnn_R_50_FPN_1x_gradaug.py")
    file = tmp_path / "lazy.py"
    file.write_text(LAZY.format(config=base, out=str(tmp_path / "out")))
    shipped = LazyConfig.load(base)
    assert instantiate(shipped.gradaug).options.num_subnets == 3
    arguments = lazy_arguments(file, [], register=[("lazy_train", *map(str, coco))])
    try:
        run(arguments)
    finally:
        for name in ("lazy_train",):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    logged = scalars(tmp_path / "out")
    assert logged["gradaug/sub0/scale"] == 0.75
    assert (tmp_path / "out" / "model_final.pth").is_file()
