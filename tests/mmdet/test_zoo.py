"""gradaug:// in MMEngine: init_cfg loads it, and a config that does not fit is named."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

import json
from pathlib import Path

import pytest
import timm
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.fileio.backends import registry_utils
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader, checkpoint
from torchvision.models import resnet18

from gradaug_det.errors import ConfigError, ZooError
from gradaug_det.mmdet import check_preprocessing, fix_preprocessing
from gradaug_det.mmdet.checkpoint import load_files_safely
from gradaug_det.mmdet.config import load_config
from gradaug_det.mmdet.train import build_runner
from gradaug_det.zoo.backbone import save_backbone
from tests.mmdet.helpers import collated, make_runner, tiny_items, tiny_model_cfg
from tests.utils import hostile
from tests.zoo.entries import MEAN, STD, describe, random_backbone, served_zoo, small_zoo, use_zoo
from tests.zoo.server import serve

FOLDER = Path(__file__).parents[2] / "configs" / "mmdet"
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


def fitting(url=URL, **backbone):
    """A config that fits tiny-resnet18: MMDetection's own images."""
    model = tiny_model_cfg()
    model.backbone.update(init_cfg=dict(type="Pretrained", checkpoint=url), **backbone)
    return Config(dict(model=model))


# ---- loading ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("query", "flipped"), [("", False), ("RGB", False), ("BGR", True)])
def test_the_detectors_features_are_the_trained_ones(zoo, query, flipped):
    """From the bytes of a picture to the last stage, as torchvision's network computes them."""
    config = fitting(URL + (f"?format={query}" if query else ""))
    if flipped:
        config.model.data_preprocessor.update(bgr_to_rgb=False, mean=MEAN[::-1], std=STD[::-1])
    check_preprocessing(config)
    model = MODELS.build(config.model)
    model.init_weights()
    model.eval()
    stem = model.backbone.conv1.weight
    assert torch.equal(stem, zoo[1]["conv1.weight"].flip(1) if flipped else zoo[1]["conv1.weight"])
    theirs = resnet18(num_classes=3).eval()
    theirs.load_state_dict(zoo[1])
    item = tiny_items(sizes=((64, 96),))  # files are read as BGR
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    x = ((item[0]["inputs"].flip(0) - mean) / std)[None]
    with torch.no_grad():
        features = model.backbone(model.data_preprocessor(collated(item), False)["inputs"])[-1]
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            x = theirs.get_submodule(name)(x)
    assert torch.allclose(features, x, rtol=1e-3, atol=1e-4 * x.abs().max().item())


@pytest.mark.parametrize(("name", "scale"), [("tiny-resnet18", 1), ("another-resnet18", 2)])
def test_a_servers_zoo_fills_the_backbone(zoo, served, name, scale):
    model = MODELS.build(fitting(f"gradaug://{name}").model)
    model.init_weights()
    assert f"/{name}.safetensors" in [path for path, _ in served.requests]
    for tensor, value in model.backbone.state_dict().items():
        if not tensor.endswith("num_batches_tracked"):
            assert torch.equal(value, zoo[1][tensor] * scale), tensor


def test_only_the_backbone_is_delivered(zoo):
    state = CheckpointLoader.load_checkpoint(URL, map_location="cpu")["state_dict"]
    assert not any(name.startswith("fc.") for name in state)
    assert {name for name in zoo[1] if not name.startswith("fc.")} == set(state)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_a_file_of_ones_own(tmp_path, zoo):
    file = tmp_path / "mine.safetensors"
    random_backbone(describe("mine", "resnet18", channel_order="BGR"), file)
    state = CheckpointLoader.load_checkpoint(f"gradaug://{file}")["state_dict"]
    assert torch.equal(state["conv1.weight"], zoo[1]["conv1.weight"].flip(1))
    wrong = (
        r"data_preprocessor.mean is \[123.675, 116.28, 103.53\], not \[103.53, 116.28, 123.675\]"
    )
    with pytest.raises(ConfigError, match=wrong):
        check_preprocessing(fitting(f"gradaug://{file}"))


def test_a_deep_stem(tmp_path):
    """A file with timm's names, which is where deep stems come from, in ResNetV1d."""
    theirs = timm.create_model("resnet18d", pretrained=False, num_classes=3).eval()
    info = describe("deep", "resnet18", stem="deep")
    file = save_backbone(tmp_path / "deep.safetensors", theirs.state_dict(), info, torch.float32)
    config = fitting(f"gradaug://{file}")
    assert [s.wanted for s in fix_preprocessing(config)] == ["SlimmableResNetV1d"]
    backbone = MODELS.build(config.model.backbone)
    backbone.init_weights()
    backbone.eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = theirs.forward_intermediates(image, intermediates_only=True)[1:]
        for ours, feature in zip(backbone(image), wanted, strict=True):
            assert torch.allclose(ours, feature, rtol=1e-4, atol=1e-5)


def test_urls_that_are_wrong():
    for url, sentence in (
        ("gradaug://tiny-resnet-18", "no backbone 'tiny-resnet-18': did you mean 'tiny-resnet18'"),
        (f"{URL}?fromat=RGB", "has an unknown key 'fromat' after the"),
        (f"{URL}?format=GRB", "must be RGB or BGR, got 'GRB'"),
        ("gradaug://", "has no name"),
    ):
        for function in (
            CheckpointLoader.load_checkpoint,
            lambda u: check_preprocessing(fitting(u)),
        ):
            with pytest.raises((ConfigError, ZooError), match=sentence):
                function(url)


# ---- preprocessing ----------------------------------------------------------------------------


def test_a_fitting_config_and_other_weights_pass():
    check_preprocessing(fitting())
    check_preprocessing(Config(dict()))
    for weights in ("torchvision://resnet50", "model.pth"):
        config = fitting(weights)
        config.model.data_preprocessor.update(mean=[0, 0, 0], std=[1, 1, 1])
        check_preprocessing(config)
        assert fix_preprocessing(config) == []
    for init in (None, [], dict(type="Kaiming")):
        config.model.backbone.init_cfg = init
        check_preprocessing(config)
    config = fitting()
    config.model.data_preprocessor = None  # MMDetection's default
    assert len(fix_preprocessing(config)) == 3
    check_preprocessing(config)


CASES = [
    ("model.data_preprocessor.bgr_to_rgb", False, r"bgr_to_rgb is False, not True"),
    ("model.data_preprocessor.mean", MEAN[::-1], r"mean is \[103.53.*\], not \[123.675"),
    ("model.data_preprocessor.std", [1.0, 1.0, 1.0], r"std is \[1.0, 1.0, 1.0\], not \[58.395"),
    ("model.data_preprocessor.mean", None, r"mean is None, not \[123.675"),
    ("model.backbone.depth", 50, "model.backbone.depth is 50, not 18"),
    ("model.backbone.type", "SlimmableResNetV1d", "is 'SlimmableResNetV1d', not 'SlimmableResNet'"),
    ("model.backbone.deep_stem", True, "model.backbone.deep_stem is True, not False"),
    ("model.neck.in_channels", [256, 512, 1024, 2048], r"in_channels is \[256.*, not \[64, 128"),
]


@pytest.mark.parametrize(("key", "value", "sentence"), CASES)
@pytest.mark.parametrize("several", [False, True], ids=["one init_cfg", "a list"])
def test_each_disagreement_is_named_and_fixed(key, value, sentence, several):
    config = fitting()
    if several:
        config.model.backbone.init_cfg = [dict(type="Kaiming"), config.model.backbone.init_cfg]
    config.merge_from_dict({key: value})
    with pytest.raises(ConfigError, match=f"init_cfg.checkpoint {URL} does not .*{sentence}") as e:
        check_preprocessing(config)
    assert "fix_preprocessing=True" in str(e.value)
    assert str(e.value).count(" is ") == 1  # nothing else is blamed
    assert [setting.key for setting in fix_preprocessing(config)] == [key]
    check_preprocessing(config)
    MODELS.build(config.model)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("tiny-resnet50", {"type": "SlimmableResNet", "style": "pytorch"}),
        ("caffe-resnet50", {"type": "SlimmableResNet", "style": "caffe"}),
        ("tiny-resnext50", {"type": "SlimmableResNeXt", "style": "pytorch", "groups": 32}),
        ("deep-resnet50", {"type": "SlimmableResNetV1d", "style": "pytorch"}),
    ],
)
def test_networks_of_bottlenecks(name, wanted):
    config = fitting(
        f"gradaug://{name}", style="caffe" if wanted["style"] == "pytorch" else "pytorch"
    )
    fixed = {s.key.removeprefix("model.backbone."): s.wanted for s in fix_preprocessing(config)}
    assert {key: fixed.get(key, config.model.backbone[key]) for key in wanted} == wanted
    assert fixed["depth"] == 50
    backbone = MODELS.build(config.model).backbone
    block = backbone.layer2[0]
    assert (block.conv1.stride == (2, 2)) == (wanted["style"] == "caffe")
    assert block.conv2.groups == wanted.get("groups", 1)
    assert hasattr(backbone, "stem") == (name == "deep-resnet50")


def test_what_cannot_be_set_right():
    with pytest.raises(ConfigError, match="is a wide ResNet, which MMDetection does not have"):
        fix_preprocessing(fitting("gradaug://tiny-wide50"))
    config = fitting()
    config.load_from = URL
    with pytest.raises(ConfigError, match=r"load_from is 'gradaug.*, a backbone, where a whole"):
        check_preprocessing(config)


def test_the_hook_checks_users_own_runners(tmp_path):
    def runner(bgr_to_rgb):
        config = fitting()
        config.model.data_preprocessor.bgr_to_rgb = bgr_to_rgb
        loop = dict(type="IterBasedTrainLoop", max_iters=1)
        hook = dict(num_subnets=1, scales=[0.5])
        return make_runner(config.model, tmp_path, hook, loop=loop, cfg=config)

    right = runner(True)
    right.train()
    assert right.message_hub.get_scalar("train/gradaug/sub0/scale").current() == 0.5
    with pytest.raises(ConfigError, match="bgr_to_rgb is False, not True"):
        runner(False).train()


def test_build_runner_refuses_and_fixes(tmp_path, zoo):
    """A whole short training from a config that does not fit."""
    file = FOLDER / "mini_mask-rcnn_r18_fpn_gradaug.py"
    config = load_config(file)
    config.model.backbone.init_cfg = dict(type="Pretrained", checkpoint=URL)
    config.merge_from_dict(
        {
            "model.data_preprocessor.std": [1.0, 1.0, 1.0],
            "train_cfg.max_iters": 1,
            "train_cfg.val_begin": 2,
            "default_hooks.checkpoint.interval": 1,
        }
    )
    loader = dict(config.train_dataloader, batch_size=2, dataset=dict(type="TinyDataset"))
    config.train_dataloader = loader
    for key in ("val", "test"):
        config[f"{key}_dataloader"] = config[f"{key}_evaluator"] = config[f"{key}_cfg"] = None
    config.dump(tmp_path / "config.py")
    with pytest.raises(ConfigError, match=r"data_preprocessor.std is \[1.0, 1.0, 1.0\], not \[58"):
        build_runner(tmp_path / "config.py", tmp_path / "out")
    runner = build_runner(tmp_path / "config.py", tmp_path / "out", fix_preprocessing=True)
    assert runner.cfg.model.data_preprocessor.std == STD
    runner.train()
    trained, started = runner.model.backbone.conv1.weight, zoo[1]["conv1.weight"]
    assert (trained - started).abs().max() < 0.1 * started.abs().max()
    assert not torch.equal(trained, started)


# ---- files ------------------------------------------------------------------------------------


@pytest.fixture
def safe_files(monkeypatch):
    """What ``build_runner`` puts in force, for one test."""
    monkeypatch.setattr(CheckpointLoader, "_schemes", dict(CheckpointLoader._schemes))
    monkeypatch.setattr(checkpoint, "torch", torch)
    monkeypatch.setattr(checkpoint, "load_url", checkpoint.load_url)
    load_files_safely()


def test_programs_are_refused(tmp_path, safe_files):
    target = tmp_path / "made"
    path = hostile.write(tmp_path / "model.pth", hostile.attribute_walk(target))
    config = fitting(str(path))
    runner = make_runner(config.model, tmp_path, load_from=str(path), cfg=config)
    resumed = make_runner(config.model, tmp_path, load_from=str(path), resume=True, cfg=config)
    for load in (
        runner.train,
        runner.load_or_resume,
        resumed.load_or_resume,
        MODELS.build(config.model).init_weights,
    ):
        with pytest.raises(ZooError, match=r"getattr, which loading would run; nothing of it has"):
            load()
    assert not target.exists()


PAVI = """
import shutil
from types import SimpleNamespace as Model
class modelcloud:
    get = lambda name: Model(name="x.pth", download=lambda to: shutil.copy({source!r}, to))
"""


@pytest.mark.parametrize(
    "way", ["local", "http", "torchvision", "openmmlab", "home", "mmcls", "pavi", "s3"]
)
def test_no_way_to_a_checkpoint_runs_it(tmp_path, monkeypatch, safe_files, way):
    """Each of MMEngine's schemes, by its own means."""
    cache = tmp_path / "torch" / "checkpoints"
    cache.mkdir(parents=True)
    home, target = tmp_path / "home", tmp_path / "made"
    home.mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))
    monkeypatch.setenv("MMENGINE_HOME", str(home))
    place = {
        "torchvision": cache / Path(checkpoint.get_torchvision_models()["resnet18"]).name,
        "mmcls": cache / Path(checkpoint.get_mmcls_models()["vgg11"]).name,
        "home": home / "x.pth",
    }.get(way, tmp_path / "x.pth")
    (tmp_path / "pavi.py").write_text(PAVI.format(source=str(place)))
    monkeypatch.syspath_prepend(tmp_path)

    class Petrel(LocalBackend):
        def get(self, filepath):
            return place.read_bytes()

    monkeypatch.setitem(registry_utils.backends, "petrel", Petrel)
    torch.save({"state_dict": {"backbone.w": torch.ones(1)}}, place)
    with serve(place.read_bytes()) as server:
        links = {"x": f"{server.url}/x.pth", "h": "x.pth"}
        (home / "open_mmlab.json").write_text(json.dumps(links))
        name = {
            **{"local": str(place), "http": links["x"], "torchvision": "torchvision://resnet18"},
            **{"openmmlab": "open-mmlab://x", "home": "openmmlab://h", "pavi": "pavi://x"},
            **{"mmcls": "mmcls://vgg11", "s3": "s3://bucket/x.pth"},
        }[way]
        assert list(CheckpointLoader.load_checkpoint(name)["state_dict"].values()) == [1]
        (cache / "x.pth").unlink(missing_ok=True)
        hostile.write(place, hostile.attribute_walk(target), "legacy")
        server.source = place.read_bytes()
        with pytest.raises(ZooError, match=r"getattr, which loading would run; nothing of it has"):
            CheckpointLoader.load_checkpoint(name)
    assert not target.exists()


def test_trainings_are_resumed(tmp_path, safe_files, zoo):
    """MMEngine's own checkpoints hold numpy's numbers, histories, averages and schedules, too."""
    more = dict(
        hooks=[dict(type="EMAHook")],
        optim=dict(optimizer=dict(type="AdamW", lr=1e-3)),
        param_scheduler=[
            dict(type="LinearLR", start_factor=0.1, by_epoch=False, end=3),
            dict(type="MultiStepLR", milestones=[1, 2], by_epoch=True),
        ],
    )
    saving = dict(checkpoint=dict(type="CheckpointHook", interval=1), timer=None, logger=None)
    more["default_hooks"] = saving
    first = make_runner(fitting().model, tmp_path, dict(num_subnets=1), **more)
    first.train()
    again = make_runner(
        fitting().model,
        tmp_path,
        dict(num_subnets=1),
        resume=True,
        loop=dict(by_epoch=True, max_epochs=2),
        **more,
    )
    again.train()
    assert (first.epoch, again.epoch) == (1, 2)
    assert again.iter == 2 * first.iter
    scalars = [r.message_hub.log_scalars for r in (first, again)]
    assert scalars[0].keys() == scalars[1].keys() and scalars[0]
    for name, history in scalars[0].items():
        ours, wanted = scalars[1][name], history.data[0]
        assert ours.data[0][: len(wanted)].tolist() == wanted.tolist(), name
        assert isinstance(ours, HistoryBuffer) and len(ours.data[0]) >= len(wanted)
        assert ours.statistics("mean") == ours.mean()
    assert HistoryBuffer._statistics_methods["mean"] is HistoryBuffer.mean
    bare = zoo[0] / "tiny-resnet18.safetensors"
    with pytest.raises(ZooError, match=f"torchvision's names; write gradaug://{bare} to have it"):
        CheckpointLoader.load_checkpoint(str(bare))
    with pytest.raises(ZooError, match=r"nothing.pth does not exist"):
        CheckpointLoader.load_checkpoint(str(tmp_path / "nothing.pth"))
