"""gradaug:// in Detectron2: any checkpointer loads it, and a config that does not fit is named."""

import argparse
import importlib.util
import os
import pickle
import time
from pathlib import Path

import pooch
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine.hooks import PeriodicCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from safetensors.torch import save_file
from torchvision.models import resnet18

from gradaug_det.d2 import GradAugHook, check_preprocessing, fix_preprocessing
from gradaug_det.d2.checkpoint import SafeCheckpointer
from gradaug_det.d2.train import Trainer, run
from gradaug_det.errors import ConfigError, ZooError
from gradaug_det.zoo.convert import rename
from gradaug_det.zoo.download import _compute_sha256
from tests.utils import hostile
from tests.zoo.entries import MEAN, STD, describe, random_backbone, served_zoo, small_zoo, use_zoo

from .dataset import annotation, write_coco
from .helpers import make_trainer, tiny_cfg

ROOT = Path(__file__).parents[2]
URL = "gradaug://tiny-resnet18"


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """The folder of a zoo, and the tensors of its one backbone that has a file."""
    return small_zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(autouse=True)
def in_use(zoo, monkeypatch):
    use_zoo(zoo[0], monkeypatch)


@pytest.fixture
def served(zoo, in_use, tmp_path, monkeypatch):
    with served_zoo(zoo, tmp_path, monkeypatch) as server:
        yield server


def fitting_cfg(kind="mask_rcnn"):
    """A config that fits tiny-resnet18."""
    cfg = tiny_cfg(kind)
    cfg.MODEL.WEIGHTS = URL
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = MEAN[::-1], STD[::-1]
    return cfg


# ---- loading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointer", [DetectionCheckpointer, SafeCheckpointer])
@pytest.mark.parametrize("fpn", [True, False], ids=["bottom_up", "bare"])
def test_a_plain_checkpointer_fills_the_backbone(zoo, served, checkpointer, fpn):
    """From a server's zoo, each time one of its two backbones."""
    name, scale = ("tiny-resnet18", 1) if fpn else ("another-resnet18", 2)
    cfg = fitting_cfg()
    if not fpn:
        cfg.MODEL.BACKBONE.NAME = "build_slimmable_resnet_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = ["res4"]
        cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32]]
    model = build_model(cfg)
    rest = {n: t.clone() for n, t in model.state_dict().items() if ".res" not in n}
    checkpointer(model).load(f"gradaug://{name}")
    assert f"/{name}.safetensors" in [path for path, _ in served.requests]
    wanted = rename({n: t * scale for n, t in zoo[1].items()}, "torchvision", "detectron2")
    prefix = "backbone.bottom_up." if fpn else "backbone."
    filled = 0
    for name, tensor in model.state_dict().items():
        short = name.removeprefix(prefix)
        if not name.startswith(prefix):
            assert torch.equal(tensor, rest[name])
        elif short == "stem.conv1.weight":
            assert torch.equal(tensor, wanted[short].flip(1))
            filled += 1
        else:
            assert torch.equal(tensor, wanted[short]), name
            filled += 1
    assert filled >= 70


@pytest.mark.parametrize(("query", "flipped"), [("", True), ("BGR", True), ("RGB", False)])
def test_images_in_either_order_give_the_trained_features(zoo, query, flipped):
    """The detector's features are those of torchvision's network on the same picture."""
    cfg = fitting_cfg()
    if not flipped:
        cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = "RGB", MEAN, STD
    cfg.MODEL.WEIGHTS = URL + (f"?format={query}" if query else "")
    check_preprocessing(cfg)
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    theirs = resnet18(num_classes=3).eval()
    theirs.load_state_dict(zoo[1])
    picture = torch.randint(0, 256, (3, 64, 96))
    given = model.preprocess_image([{"image": picture.flip(0) if flipped else picture}])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    x = ((picture - mean) / std)[None]
    with torch.no_grad():
        features = model.backbone.bottom_up(given.tensor)["res5"]
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            x = theirs.get_submodule(name)(x)
    assert torch.allclose(features, x, rtol=1e-3, atol=1e-4 * x.abs().max().item())


def test_converted_files_are_made_once_and_belong_to_the_content(zoo, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADAUG_CACHE", str(tmp_path))
    hashed, hash_file = [], pooch.file_hash
    monkeypatch.setattr(pooch, "file_hash", lambda path: hashed.append(path) or hash_file(path))
    _compute_sha256.cache_clear()
    monkeypatch.setattr(time, "time", lambda: 1e10)  # what is new is hashed each time
    first = PathManager.get_local_path(URL)
    stamp = Path(first).stat().st_mtime_ns
    assert PathManager.get_local_path(URL) == first
    assert hashed == [str(zoo[0] / "tiny-resnet18.safetensors")]  # once a start
    assert Path(first).stat().st_mtime_ns == stamp
    assert PathManager.get_local_path(f"{URL}?format=RGB") != first
    with PathManager.open(URL, "rb") as file:
        content = torch.load(file, weights_only=True)
    assert content["matching_heuristics"] is True
    assert all(name.startswith(("stem.", "res")) for name in content["model"])
    # Another file under the same name is another conversion: here, given by its path.
    file = tmp_path / "tiny-resnet18.safetensors"
    random_backbone(describe("tiny-resnet18", "resnet18", channel_order="BGR"), file)
    assert PathManager.get_local_path(f"gradaug://{file}") != first
    kept = torch.load(PathManager.get_local_path(f"gradaug://{file}"), weights_only=True)
    assert torch.equal(kept["model"]["stem.conv1.weight"], zoo[1]["conv1.weight"])


def test_files_without_the_scheme(zoo, tmp_path):
    bare = zoo[0] / "tiny-resnet18.safetensors"
    model = build_model(fitting_cfg())
    with pytest.raises(ZooError, match=f"torchvision's names; write gradaug://{bare} to have it"):
        SafeCheckpointer(model).load(str(bare))
    # A detector's own safetensors file is another matter.
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "detector.safetensors")
    torch.nn.init.zeros_(model.backbone.bottom_up.stem.conv1.weight)
    SafeCheckpointer(model).load(str(tmp_path / "detector.safetensors"))
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_urls_that_are_wrong(tmp_path, monkeypatch):
    cfg = fitting_cfg()
    for url, sentence in (
        ("gradaug://tiny-resnet-18", "no backbone 'tiny-resnet-18': did you mean 'tiny-resnet18'"),
        (f"{URL}?fromat=RGB", "has an unknown key 'fromat' after the"),
        (f"{URL}?format=GRB", "must be RGB or BGR, got 'GRB'"),
        ("gradaug://", "has no name"),
        ("gradaug://nothing.safetensors", "nothing.safetensors: there is no such file"),
    ):
        cfg.MODEL.WEIGHTS = url
        for load in (PathManager.get_local_path, lambda _url: check_preprocessing(cfg)):
            with pytest.raises((ConfigError, ZooError), match=sentence):
                load(url)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GRADAUG_CACHE", str(tmp_path / "file"))
    with pytest.raises(ZooError, match=r"cannot write .*name another in GRADAUG_CACHE"):
        PathManager.get_local_path(URL)


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["model.pkl", "model.pth", "model.pyth"])
def test_bombs_are_refused(tmp_path, name):
    target, path = tmp_path / "made", tmp_path / name
    for kind in ("pickle", "zip", "legacy"):
        hostile.write(path, hostile.attribute_walk(target), kind)
        with pytest.raises(ZooError, match=r"getattr, which loading would run; nothing of it has"):
            SafeCheckpointer(torch.nn.Linear(1, 1)).load(str(path))
    assert not target.exists()


def test_model_zoo_pickles_load_as_in_detectron2(tmp_path):
    """Detectron2's format, Detectron's and pycls', beside the real DetectionCheckpointer."""
    cfg = tiny_cfg()
    source = build_model(cfg)
    arrays = {n: t.numpy() for n, t in source.backbone.bottom_up.state_dict().items()}
    files = {
        "d2.pkl": {"model": arrays, "__author__": "x", "matching_heuristics": True},
        "c2.pkl": {"blobs": {"conv1_w": arrays["stem.conv1.weight"], "fc_momentum": arrays}},
    }
    torch.save({"model_state": source.backbone.bottom_up.state_dict()}, tmp_path / "p.pyth")
    for name, content in files.items():
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
    for name in (*files, "p.pyth"):
        models = []
        for checkpointer in (DetectionCheckpointer, SafeCheckpointer):
            torch.manual_seed(1)
            models.append(build_model(cfg))
            checkpointer(models[-1]).load(str(tmp_path / name))
        states = [model.state_dict() for model in models]
        assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])
        loaded = states[1]["backbone.bottom_up.stem.conv1.weight"]
        assert torch.equal(loaded, source.backbone.bottom_up.stem.conv1.weight)


# ---- preprocessing ----------------------------------------------------------------------------


def test_a_fitting_config_and_other_weights_pass():
    check_preprocessing(fitting_cfg())
    for weights in ("", "detectron2://ImageNetPretrained/MSRA/R-50.pkl", "model.pth"):
        cfg = tiny_cfg()  # Detectron2's mean and std
        cfg.MODEL.WEIGHTS = weights
        check_preprocessing(cfg)
        assert fix_preprocessing(cfg) == []


CASES = [
    ("INPUT.FORMAT", "RGB", "INPUT.FORMAT is 'RGB', not 'BGR'"),
    ("MODEL.PIXEL_MEAN", MEAN, r"PIXEL_MEAN is \[123.675.*\], not \[103.53"),
    ("MODEL.PIXEL_STD", [1.0, 1.0, 1.0], r"PIXEL_STD is \[1.0, 1.0, 1.0\], not \[57.375"),
    ("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.DEPTH is 50, not 18"),
    ("MODEL.RESNETS.RES2_OUT_CHANNELS", 256, "RES2_OUT_CHANNELS is 256, not 64"),
]


@pytest.mark.parametrize(("key", "value", "sentence"), CASES)
def test_each_disagreement_is_named_and_fixed(key, value, sentence):
    cfg = fitting_cfg()
    cfg.merge_from_list([key, value])
    with pytest.raises(
        ConfigError, match=f"MODEL.WEIGHTS {URL} does not fit .*{sentence}"
    ) as error:
        check_preprocessing(cfg)
    assert "--fix-preprocessing" in str(error.value)
    assert str(error.value).count(" is ") == 1  # nothing else is blamed
    assert [setting.key for setting in fix_preprocessing(cfg)] == [key]
    assert cfg == fitting_cfg()
    check_preprocessing(cfg)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("tiny-resnet50", {"STRIDE_IN_1X1": False}),
        ("caffe-resnet50", {"STRIDE_IN_1X1": True}),
        ("tiny-resnext50", {"STRIDE_IN_1X1": False, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4}),
        ("tiny-wide50", {"STRIDE_IN_1X1": False, "WIDTH_PER_GROUP": 128}),
    ],
)
def test_networks_of_bottlenecks(name, wanted):
    cfg = fitting_cfg()
    cfg.MODEL.WEIGHTS = f"gradaug://{name}"
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = not wanted["STRIDE_IN_1X1"]
    if name == "caffe-resnet50":  # its mean is in BGR already
        cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = MEAN, STD
    wanted = {**wanted, "DEPTH": 50, "RES2_OUT_CHANNELS": 256}
    fixed = {s.key.removeprefix("MODEL.RESNETS."): s.wanted for s in fix_preprocessing(cfg)}
    assert fixed == wanted
    bottom_up = build_model(cfg).backbone.bottom_up
    block = bottom_up.res3[0]
    assert (block.conv1.stride == (2, 2)) == wanted["STRIDE_IN_1X1"]
    assert block.conv2.groups == wanted.get("NUM_GROUPS", 1)


def test_a_deep_stem_does_not_exist_here():
    cfg = fitting_cfg()
    cfg.MODEL.WEIGHTS = "gradaug://deep-resnet50"
    for function in (check_preprocessing, fix_preprocessing):
        with pytest.raises(ConfigError, match="deep stem, which Detectron2's ResNet does not have"):
            function(cfg)


def lazy_cfg():
    cfg = LazyConfig.load(str(ROOT / "configs/detectron2/mask_rcnn_R_50_FPN_1x_gradaug.py"))
    cfg.train.init_checkpoint = URL
    return cfg


def test_lazy_configs():
    cfg = lazy_cfg()
    with pytest.raises(ConfigError, match=r"train.init_checkpoint .*model.pixel_std is \[1.0") as e:
        check_preprocessing(cfg)
    assert "model.backbone.bottom_up.stages.depth is 50, not 18" in str(e.value)
    cfg.dataloader.train.mapper.image_format = "RGB"
    fixed = {setting.key for setting in fix_preprocessing(cfg)}
    assert "dataloader.train.mapper.image_format" in fixed
    assert cfg.dataloader.test.mapper.image_format == "BGR"  # refers to the other
    check_preprocessing(cfg)
    stages = instantiate(cfg.model.backbone.bottom_up.stages)
    assert [len(stage) for stage in stages] == [2, 2, 2, 2]
    cfg.train.init_checkpoint = "gradaug://tiny-resnet50"
    with pytest.raises(ConfigError, match=r"stages.depth is 18, not 50"):
        check_preprocessing(cfg)
    cfg.train.init_checkpoint = ""
    check_preprocessing(cfg)


def test_the_hook_checks_users_own_trainers():
    cfg = fitting_cfg()
    trainer = make_trainer(build_model(cfg), GradAugHook(num_subnets=1))
    trainer.cfg = cfg
    trainer._hooks[-1].before_train()
    trainer._hooks[-1].after_train()
    cfg.INPUT.FORMAT = "RGB"
    with pytest.raises(ConfigError, match=r"INPUT.FORMAT is 'RGB', not 'BGR'"):
        trainer._hooks[-1].before_train()


# ---- the script -------------------------------------------------------------------------------


@pytest.fixture
def train_net(tmp_path):
    """tools/train_net.py in this process, on two images; returns its exit code."""
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "tools" / "train_net.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    boxes = [annotation(10, 10, 40, 50), annotation(60, 20, 50, 60, category=2)]
    file, images = map(str, write_coco(tmp_path / "data", [boxes, boxes]))
    opts = {
        "MODEL.WEIGHTS": URL,
        "MODEL.FPN.OUT_CHANNELS": 16,
        "MODEL.ROI_HEADS.NUM_CLASSES": 3,
        "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
        "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
        "INPUT.MIN_SIZE_TRAIN": "(64,)",
        "INPUT.FORMAT": "RGB",
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 1,
        "SOLVER.STEPS": "()",
        "DATASETS.TRAIN": "('zoo_train',)",
        "DATASETS.TEST": "()",
        "OUTPUT_DIR": tmp_path / "out",
    }
    config = ROOT / "configs/detectron2/mini_mask_rcnn_R_18_FPN_gradaug.yaml"

    def call(*extra, **changes):
        pairs = [str(x) for pair in (opts | changes).items() for x in pair]
        register = ["--register", "zoo_train", file, images]
        return script.main(["--config-file", str(config), *register, *extra, *pairs])

    yield call
    DatasetCatalog.remove("zoo_train")
    MetadataCatalog.remove("zoo_train")


def test_train_net_refuses_and_fixes(tmp_path, zoo, train_net, capsys):
    assert train_net() == 2
    sentence = f"error: MODEL.WEIGHTS {URL} does not fit this config: INPUT.FORMAT is 'RGB', not"
    assert sentence in capsys.readouterr().err
    assert train_net("--fix-preprocessing") == 0
    final = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    started = zoo[1]["conv1.weight"].flip(1)
    trained = final["backbone.bottom_up.stem.conv1.weight"]
    assert (trained - started).abs().max() < 0.1 * started.abs().max()
    assert not torch.equal(trained, started)


@pytest.mark.parametrize("extra", [(), ("--eval-only",)], ids=["train", "eval"])
def test_train_net_refuses_bombs(tmp_path, train_net, capsys, extra):
    target, path = tmp_path / "made", tmp_path / "bomb.pkl"
    path.write_bytes(pickle.dumps({"model": {}, "__author__": Bomb(target)}, protocol=2))
    assert train_net(*extra, **{"MODEL.WEIGHTS": path}) == 2
    assert "posix.mkdir, which loading would run; nothing of it has run" in capsys.readouterr().err
    assert not target.exists()


def test_every_part_of_the_trainer_has_the_safe_checkpointer(train_net, monkeypatch):
    seen = []
    monkeypatch.setattr(Trainer, "train", lambda self: seen.append(self))
    assert train_net("--fix-preprocessing") == 0
    (trainer,) = seen
    periodic = [h for h in trainer._hooks if isinstance(h, PeriodicCheckpointer)]
    assert [type(h.checkpointer) for h in periodic] == [SafeCheckpointer]
    assert periodic[0].checkpointer is trainer.checkpointer


def test_lazy_trainings_are_checked_too(tmp_path):
    file = tmp_path / "lazy.py"
    base = str(ROOT / "configs/detectron2/mask_rcnn_R_50_FPN_1x_gradaug.py")
    file.write_text(
        "from detectron2.config import LazyConfig\n"
        f"base = LazyConfig.load({base!r})\n"
        "model, dataloader, train = base.model, base.dataloader, base.train\n"
    )
    arguments = argparse.Namespace(
        config_file=str(file), opts=[f"train.init_checkpoint={URL}"], register=[]
    )
    with pytest.raises(ConfigError, match=r"train.init_checkpoint .*stages.depth is 50, not 18"):
        run(arguments)
