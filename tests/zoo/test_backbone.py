"""Backbone files: what is written is read again; anything else is refused with a way out."""

import json
import pickle

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from gradaug_det.errors import GradAugError, ZooError
from gradaug_det.zoo.backbone import read_backbone, read_info, save_backbone
from tests.zoo.helpers import make_file, make_info, make_state


@pytest.fixture(scope="module")
def state():
    return make_state()


def write(path, state, **metadata):
    """A safetensors file with any metadata."""
    fields = make_info().to_dict() | metadata
    save_file(state, path, metadata={"gradaug_det": json.dumps(fields)})
    return path


def test_round_trip(tmp_path, state):
    info = make_info()
    path = save_backbone(tmp_path / "tiny.safetensors", state, info)
    read, read_as = read_backbone(path)
    assert read_as == info == read_info(path)
    assert read_as.recipe == {"epochs": 1, "scales": [1, 0.5]}
    assert all(tensor.dtype == torch.float32 for tensor in read.values())
    assert {t.dtype for t in load_file(path).values()} == {torch.float16}
    for name, tensor in read.items():
        assert torch.equal(tensor, state[name].half().float()), name
    net = torchvision.models.resnet18(num_classes=10)
    net.load_state_dict(read, strict=True)
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.safetensors"]


def test_without_classifier_and_in_float32(tmp_path, state):
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    path = save_backbone(tmp_path / "x.safetensors", headless, make_info(), dtype=torch.float32)
    read, _ = read_backbone(path)
    assert torch.equal(read["conv1.weight"], state["conv1.weight"])
    assert "fc.weight" not in read


def test_deep_stem_compares_what_it_can(tmp_path, state):
    deep = {name: t for name, t in state.items() if not name.startswith(("conv1.", "bn1."))}
    deep["conv1.0.weight"] = torch.zeros(32, 3, 3, 3)
    read, info = read_backbone(
        save_backbone(tmp_path / "deep.safetensors", deep, make_info(stem="deep"))
    )
    assert info.stem == "deep"
    assert read["conv1.0.weight"].shape == (32, 3, 3, 3)
    del deep["layer2.0.bn1.bias"]
    with pytest.raises(ZooError, match=r"layer2\.0\.bn1\.bias"):
        save_backbone(tmp_path / "deep.safetensors", deep, make_info(stem="deep"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../etc"}, r"name must be lower-case .* got '../etc'"),
        ({"name": "x" * 101}, "at most 100"),
        ({"architecture": "system"}, r"architecture must be resnet18, .*, got 'system'"),
        ({"architecture": ["resnet18"]}, "architecture must be"),
        ({"depth": 50}, r"depth must be 18, which is resnet18's, got 50"),
        ({"depth": 18.0}, "depth must be 18"),
        ({"min_width": 0}, r"min_width must be in \(0, 1\]"),
        ({"min_width": True}, "min_width must be"),
        ({"stem": "3x3"}, r"stem must be 7x7 or deep, got '3x3'"),
        ({"stride_in": "2x2"}, "stride_in must be 3x3 or 1x1"),
        ({"channel_order": "GBR"}, r"channel_order must be RGB or BGR, got 'GBR'"),
        ({"channel_order": None}, "channel_order must be RGB or BGR, got None"),
        ({"pixel_mean": [0.485, 0.456, 0.406]}, r"0-255 scale \(multiply .* by 255\)"),
        ({"pixel_mean": [1, 2]}, "pixel_mean must be 3 finite numbers"),
        ({"pixel_std": [0.229, 0.224, 0.225]}, "pixel_std must be on the 0-255 scale"),
        ({"pixel_std": ["58", 57, 57]}, "pixel_std must be 3 finite numbers"),
        ({"recipe": "GradAug"}, "recipe must be an object"),
        ({"metrics": {"top1": "78"}}, "metrics must be an object of finite numbers"),
        ({"metrics": {"top1": 10**400}}, "metrics must be an object of finite numbers"),
        ({"metrics": {"\x1b[2J": 1}}, "metrics must be an object of finite numbers"),
        ({"licence": ""}, "licence must be one line"),
        ({"source": 3}, "source must be one line"),
        ({"source": "\x1b[2J"}, "source must be one line"),
        ({"colour": 1}, r"unknown fields \['colour'\]"),
    ],
)
def test_a_wrong_description_is_refused(tmp_path, state, change, message):
    path = write(tmp_path / "x.safetensors", state, **change)
    for read in (read_info, read_backbone):
        with pytest.raises(ZooError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "save_backbone" in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "no metadata 'gradaug_det'"),
        ({"format": "pt"}, "no metadata 'gradaug_det'"),
        ({"gradaug_det": "{"}, "is not JSON"),
        ({"gradaug_det": "[" * 60_000}, "is not JSON"),
        ({"gradaug_det": "[1]"}, "must be a JSON object"),
        ({"gradaug_det": '{"name": "x"}'}, "lacks architecture, "),
        ({"gradaug_det": " " * 70_000}, "metadata of 70000 characters"),
        (
            {"gradaug_det": json.dumps(make_info().to_dict()).replace("12.5", "NaN")},
            "metrics must be an object of finite numbers",
        ),
    ],
)
def test_wrong_metadata_is_refused(tmp_path, metadata, message):
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "x.safetensors", metadata=metadata)
    for read in (read_info, read_backbone):
        with pytest.raises(GradAugError, match=message):
            read(tmp_path / "x.safetensors")


class Bomb:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>404</html>", pickle.dumps(Bomb()), b"\xff" * 100, b"\x08" + b"\0" * 7 + b"{}"],
    ids=["empty", "html", "pickle", "noise", "short"],
)
def test_no_safetensors(tmp_path, content, capsys):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    for read in (read_info, read_backbone):
        with pytest.raises(ZooError, match=r"not a safetensors file.*fetch it again, or convert"):
            read(path)
    assert capsys.readouterr().out == ""


def test_a_truncated_file_a_missing_one_a_folder(tmp_path):
    whole = make_file(tmp_path / "tiny.safetensors").read_bytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(whole[:-1])
    with pytest.raises(ZooError, match="or a damaged one"):
        read_backbone(path)
    for missing in (tmp_path / "y.safetensors", tmp_path):
        with pytest.raises(ZooError, match="no such file"):
            read_info(missing)


def test_a_huge_file_is_not_opened(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.truncate(2 * 2**30 + 1)  # sparse: takes no disk
    with pytest.raises(ZooError, match="2147483649 bytes; a backbone has at most"):
        read_info(path)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("layer1.0.conv1.weight", None, r"1 tensors of resnet18 are missing, such as 'layer1"),
        ("fc.bias", None, r"missing, such as 'fc.bias'"),
        ("layer9.weight", torch.zeros(1), r"'layer9.weight' is not one of resnet18"),
        ("conv1.weight", torch.zeros(64, 1, 7, 7), r"conv1.weight has shape \(64, 1, 7, 7\)"),
        ("fc.weight", torch.zeros(9, 512), r"fc.weight has shape \(9, 512\)"),
        ("bn1.bias", torch.full((64,), float("nan")), "bn1.bias has a value that is not finite"),
        ("bn1.bias", torch.full((64,), float("inf")), "bn1.bias has a value that is not finite"),
        ("bn1.bias", torch.zeros(64, dtype=torch.int64), "bn1.bias must be one of F16"),
    ],
)
def test_wrong_tensors(tmp_path, state, name, tensor, message):
    changed = state | {name: tensor} if tensor is not None else dict(state)
    if tensor is None:
        del changed[name]
    with pytest.raises(ZooError, match=message):
        read_backbone(write(tmp_path / "x.safetensors", changed))
    if "F16" not in message:  # integers can be written as floats
        with pytest.raises(ZooError, match=message):
            save_backbone(tmp_path / "y.safetensors", changed, make_info())
        assert not (tmp_path / "y.safetensors").exists()


def test_what_float16_cannot_hold_is_not_saved(tmp_path, state):
    big = state | {"bn1.running_var": torch.full((64,), 1e6)}
    with pytest.raises(ZooError, match=r"not finite in torch.float16; give dtype=torch.float32"):
        save_backbone(tmp_path / "x.safetensors", big, make_info())
    assert list(tmp_path.iterdir()) == []
    read, _ = read_backbone(
        save_backbone(tmp_path / "x.safetensors", big, make_info(), dtype=torch.float32)
    )
    assert read["bn1.running_var"][0] == 1e6
