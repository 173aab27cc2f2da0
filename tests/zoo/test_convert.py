"""ResNets of five code bases: the same features under other names, and back bit by bit."""

# ruff: noqa: C408  (dict(...) is how MMDetection's arguments are written)

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from mmdet.models.backbones import ResNet, ResNetV1d, ResNeXt
from torchvision.models.feature_extraction import create_feature_extractor

from gradaug_det.errors import ConfigError, ZooError
from gradaug_det.zoo.convert import convert, rename

AUTHORS = Path(__file__).parents[1] / "data" / "reference" / "authors_resnet50.json"
STAGES = ("res2", "res3", "res4", "res5")


def detectron2_resnet(depth, groups=1, width=64, norm="BN"):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth == 18 else 256
    cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = groups, width
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.NORM = norm
    cfg.MODEL.RESNETS.OUT_FEATURES = list(STAGES)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return build_resnet_backbone(cfg, ShapeSpec(channels=3))


def torchvision_resnet(name):
    return getattr(torchvision.models, name)(num_classes=7)


def timm_resnet(name):
    return timm.create_model(name, pretrained=False, num_classes=7)


# Of each architecture, every framework's own network.
NETWORKS = {
    "R-18": {
        "torchvision": functools.partial(torchvision_resnet, "resnet18"),
        "detectron2": functools.partial(detectron2_resnet, 18),
        "mmdet": functools.partial(ResNet, 18),
        "timm": functools.partial(timm_resnet, "resnet18"),
    },
    "R-50": {
        "torchvision": functools.partial(torchvision_resnet, "resnet50"),
        "detectron2": functools.partial(detectron2_resnet, 50),
        "mmdet": functools.partial(ResNet, 50),
        "timm": functools.partial(timm_resnet, "resnet50"),
    },
    "X-50": {
        "torchvision": functools.partial(torchvision_resnet, "resnext50_32x4d"),
        "detectron2": functools.partial(detectron2_resnet, 50, groups=32, width=4),
        "mmdet": functools.partial(ResNeXt, depth=50, groups=32, base_width=4),
        "timm": functools.partial(timm_resnet, "resnext50_32x4d"),
    },
    "R-50 deep": {
        "mmdet": functools.partial(ResNetV1d, depth=50),
        "timm": functools.partial(timm_resnet, "resnet50d"),
    },
}
HUBS = {kind: "timm" if kind == "R-50 deep" else "torchvision" for kind in NETWORKS}
PAIRS = [(kind, other) for kind, made in NETWORKS.items() for other in made if other != HUBS[kind]]


@functools.cache
def network(kind, framework):
    """A network in evaluation mode with statistics of its own, so that no tensor is trivial."""
    torch.manual_seed(0)
    model = NETWORKS[kind][framework]()
    generator = torch.Generator().manual_seed(len(framework))
    for name, tensor in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(3)
        elif tensor.dim() == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    model.eval()  # MMDetection's returns None
    return model


@torch.no_grad()
def features(model, image):
    """The outputs of the four stages, of any framework's network."""
    if isinstance(model, torchvision.models.ResNet):
        nodes = {f"layer{i}": f"res{i + 1}" for i in range(1, 5)}
        return list(create_feature_extractor(model, nodes)(image).values())
    if isinstance(model, timm.models.ResNet):
        return model.forward_intermediates(image, intermediates_only=True)[1:]
    outputs = model(image)
    return list(outputs.values()) if isinstance(outputs, dict) else list(outputs)


def assert_same(a, b):
    assert sorted(a) == sorted(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert torch.equal(a[name], b[name]), name


def kept(state, other):
    """What a conversion to that framework keeps of a state."""
    drop = "num_batches_tracked" if other == "detectron2" else "never"
    return {k: v for k, v in state.items() if not (k.startswith(("fc.", "linear.")) or drop in k)}


@pytest.mark.parametrize(("kind", "other"), PAIRS)
@pytest.mark.parametrize("back", [False, True], ids=["to", "from"])
def test_same_features_and_a_bitwise_round_trip(kind, other, back):
    source, target = (other, HUBS[kind]) if back else (HUBS[kind], other)
    ours = network(kind, source)
    theirs = NETWORKS[kind][target]()
    theirs.eval()
    state = convert(ours.state_dict(), source, target)
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("fc.") or "num_batches" in name for name in missing)
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    given = image.flip(1) if "detectron2" in (source, target) else image
    for a, b in zip(features(ours, image), features(theirs, given), strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5 * a.abs().max().item())
    assert_same(
        convert(convert(ours.state_dict(), source, target), target, source),
        kept(ours.state_dict(), target if source != "detectron2" else source),
    )


def test_detectors_and_frozen_norms_are_filled_under_a_prefix():
    backbone = network("R-18", "torchvision").state_dict()
    state = convert(backbone, "torchvision", "detectron2", prefix="backbone.bottom_up.")
    assert all(name.startswith("backbone.bottom_up.") for name in state)
    frozen = detectron2_resnet(18, norm="FrozenBN")
    bare = {name.removeprefix("backbone.bottom_up."): tensor for name, tensor in state.items()}
    frozen.load_state_dict(bare, strict=True)
    # A whole detector's state gives its backbone back.
    detector = {**state, "backbone.fpn_lateral2.weight": torch.zeros(1), "roi_heads.x": 0}
    again = convert({"model": detector, "iteration": 3}, "detectron2", "torchvision")
    assert_same(again, kept(backbone, "detectron2"))


def test_channel_order():
    state = network("R-18", "torchvision").state_dict()
    name = "stem.conv1.weight"
    usual = convert(state, "torchvision", "detectron2")
    assert torch.equal(usual[name], state["conv1.weight"][:, [2, 1, 0]])
    rgb = convert(state, "torchvision", "detectron2", target_format="RGB")
    assert rgb[name] is state["conv1.weight"]
    state = network("R-18", "mmdet").state_dict()
    caffe = convert(state, "mmdet", "mmdet", source_format="BGR", target_format="RGB")
    assert torch.equal(caffe["conv1.weight"], state["conv1.weight"][:, [2, 1, 0]])
    assert caffe["layer1.0.conv1.weight"] is state["layer1.0.conv1.weight"]


def test_classifier_is_kept_on_request():
    ours = network("R-18", "torchvision")
    state = convert(ours.state_dict(), "torchvision", "timm", classifier=True)
    theirs = NETWORKS["R-18"]["timm"]().eval()
    theirs.load_state_dict(state, strict=True)
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(theirs(image), ours(image), rtol=1e-4, atol=1e-4)
    linear = convert(ours.state_dict(), "torchvision", "detectron2", classifier=True)
    assert torch.equal(linear["linear.bias"], ours.fc.bias)
    with pytest.raises(ConfigError, match="MMDetection's ResNet has no classifier"):
        convert(state, "timm", "mmdet", classifier=True)
    without = {k: v for k, v in state.items() if not k.startswith("fc.")}
    with pytest.raises(ZooError, match=r"'fc.bias' is missing"):
        convert(without, "timm", "torchvision", classifier=True)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_wrapped_checkpoints_and_numpy_arrays(key):
    state = network("R-18", "torchvision").state_dict()
    arrays = {f"module.{name}": tensor.numpy() for name, tensor in state.items()}
    assert isinstance(arrays["module.conv1.weight"], np.ndarray)
    converted = convert({key: arrays, "epoch": 3}, "torchvision", "timm", classifier=True)
    assert_same(converted, dict(state))


def damaged(change):
    state = dict(network("R-50", "torchvision").state_dict())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: s.clear(), r"'conv1.weight' is missing; it is empty"),
        (lambda s: s.pop("layer3.0.conv1.weight"), r"'layer3.0.conv1.weight' is missing"),
        (lambda s: s.pop("layer3.4.bn2.running_var"), r"'layer3.4.bn2.running_var' is missing"),
        (lambda s: s.pop("layer3.4.conv1.weight"), r"'layer3.4.bn1.weight' is unknown"),
        (lambda s: s.pop("layer2.0.downsample.0.weight"), r"'layer2.0.downsample.0.weight' is mis"),
        (
            lambda s: s.update({"layer1.1.se.weight": torch.zeros(3)}),
            r"'layer1.1.se.weight' is unknown",
        ),
        (
            lambda s: s.update({"layer1.1.bn2.bias": torch.zeros(3)}),
            r"'layer1.1.bn2.bias' has shape \(3,\) after a convolution with 64 channels",
        ),
        (
            lambda s: s.update({"conv1.weight": torch.zeros(64, 1, 7, 7)}),
            r"'conv1.weight' takes 1 channels, not 3",
        ),
        (lambda s: s.update({"layer4.1.conv2.weight": torch.zeros(512)}), "not a convolution's"),
    ],
)
def test_states_that_are_not_what_they_claim(change, sentence):
    with pytest.raises(ZooError, match=f"not a ResNet of torchvision: .*{sentence}"):
        convert(damaged(change), "torchvision", "detectron2")


def test_other_networks_are_refused():
    vgg = torchvision.models.vgg11().state_dict()
    for function in (rename, convert):
        with pytest.raises(ZooError, match=r"'conv1.weight' is missing.*'features.0.weight'"):
            function(vgg, "torchvision", "detectron2")


def test_a_deep_stem_needs_a_framework_that_has_one():
    deep = network("R-50 deep", "mmdet").state_dict()
    for target in ("torchvision", "detectron2"):
        with pytest.raises(ConfigError, match="no deep stem; timm and MMDetection have one"):
            convert(deep, "mmdet", target)
    # ResNet-D's shortcut in a network with an ordinary stem (MMDetection's avg_down).
    pooled = ResNet(18, avg_down=True).state_dict()
    with pytest.raises(ConfigError, match="no pooled shortcut"):
        convert(pooled, "mmdet", "torchvision")
    assert_same(convert(convert(pooled, "mmdet", "timm"), "timm", "mmdet"), dict(pooled))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(source="caffe", target="timm"), "source must be one of torchvision, timm, mmdet"),
        (dict(source="timm", target="keras"), "target must be one of .*, got 'keras'"),
        (
            dict(source="timm", target="timm", target_format="rgb"),
            "target_format must be RGB or BGR, got 'rgb'",
        ),
    ],
)
def test_wrong_arguments(arguments, sentence):
    with pytest.raises(ConfigError, match=sentence):
        convert(network("R-18", "timm").state_dict(), **arguments)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_authors_checkpoints(key):
    """Names and shapes are those of the authors' code; for numbers see test_parity.py."""
    recorded = json.loads(AUTHORS.read_text())["state_dict"]
    tensors = {e["name"]: torch.full(e["shape"], i + 0.5) for i, e in enumerate(recorded)}
    saved = {key: {f"module.{name}": tensor for name, tensor in tensors.items()}, "last_epoch": 1}
    state = rename(saved, "authors", "torchvision")
    torchvision.models.resnet50().load_state_dict(state, strict=True)
    assert_same(convert(saved, "authors", "torchvision", classifier=True), state)
    assert_same(convert(state, "torchvision", "authors", classifier=True), tensors)
    detectron2_resnet(50).load_state_dict(convert(saved, "authors", "detectron2"), strict=True)
    with pytest.raises(ZooError, match=r"not a ResNet of the authors' code: 'features.17.x' is"):
        rename({**tensors, "features.17.x": 0}, "authors", "torchvision")


def test_renaming_of_incomplete_states():
    """Gradients and shapes have names too: only weights of whole networks are checked."""
    shapes = {"conv1.weight": (64, 3), **{f"layer{i}.0.conv1.weight": (8,) for i in range(1, 5)}}
    shapes |= {"fc.bias": (7,), "bn1.num_batches_tracked": ()}
    assert rename(shapes, "torchvision", "detectron2") == {
        "stem.conv1.weight": (64, 3),
        "linear.bias": (7,),
        **{f"res{i}.0.conv1.weight": (8,) for i in range(2, 6)},
    }
    assert set(rename(shapes, "torchvision", "mmdet")) == set(shapes) - {"fc.bias"}
    with pytest.raises(ZooError, match="'weight' is unknown"):
        rename({"weight": 0, **shapes}, "mmdet", "torchvision")  # which has no classifier
