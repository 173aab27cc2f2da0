"""``gradaug-det zoo``: what it prints, its exit codes, and files that frameworks load."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from safetensors.torch import load_file

from gradaug_det.commands import cli
from gradaug_det.zoo.backbone import read_backbone
from gradaug_det.zoo.download import CACHE_VARIABLE, OFFLINE_VARIABLE, URL_VARIABLE
from gradaug_det.zoo.info import SOURCES
from gradaug_det.zoo.naming import NAMINGS
from gradaug_det.zoo.publish import publish
from tests.d2.helpers import tiny_cfg
from tests.zoo.helpers import make_file, make_info, make_state

ROOT = Path(__file__).parents[2]


@pytest.fixture
def lab(tmp_path, cache_folder, monkeypatch):
    """A zoo of one backbone, ``tiny``; its file."""
    publish(tmp_path / "zoo", [str(make_file(tmp_path / "source.safetensors"))])
    monkeypatch.setenv("GRADAUG_ZOO_URL", str(tmp_path / "zoo"))
    return tmp_path / "zoo" / "tiny.safetensors"


@pytest.fixture
def zoo(capsys):
    """Runs ``gradaug-det zoo``; returns exit code, stdout and stderr."""

    def run(*arguments):
        code = cli.main(["zoo", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_list(lab, zoo):
    code, out, _ = zoo("list")
    assert code == 0
    header, row, *built_in = out.splitlines()
    assert re.split("  +", header) == [
        *("NAME", "ARCHITECTURE", "MB", "TOP-1", "TOP-5", "FGSM 1/255", "FGSM 2/255"),
        *("FGSM 4/255", "CORRUPTED", "WHERE", "ZOO"),
    ]
    assert row.split() == [
        "tiny",
        "resnet18",
        "22.4",
        "12.50",
        "here",
        str(lab.parent / "index.json"),
    ]
    assert built_in[0].split()[:4] == ["mini-resnet18-anywidth", "resnet18", "22.4", "70.42"]
    lab.unlink()
    assert zoo("list")[1].splitlines()[1].split()[4] == "missing"
    assert json.loads(zoo("list", "--json")[1])[0]["path"] is None


def test_listing_needs_no_torch(cache_folder):
    code = (
        "import sys; from gradaug_det.commands import cli; cli.main(['zoo', 'list'])\n"
        "sys.exit('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout.split()[0]) == (0, "NAME")


def test_list_marks_claims(cache_folder, zoo):
    assert "78.78*" in zoo("list")[1]
    assert "* a claim, not measured" in zoo("list")[1]


def test_info(lab, zoo):
    described = json.loads(zoo("info", "tiny", "--json")[1])
    assert described["channel_order"] == "RGB"
    assert described["path"] == str(lab)
    assert described["zoo"] == str(lab.parent / "index.json")
    assert json.loads(zoo("list", "--json")[1])[0] == described
    assert json.loads(zoo("info", lab, "--json")[1]) == make_info().to_dict()
    assert "pixel_mean     [123.675, 116.28, 103.53]" in zoo("info", "tiny")[1]
    code, _, err = zoo("info", "tinny")
    assert (code, err.count("\n")) == (2, 1)
    assert "did you mean 'tiny'" in err


def test_download_and_verify(lab, zoo):
    assert zoo("download", "tiny", "tiny") == (0, f"{lab}\n{lab}\n", "")
    code, out, _ = zoo("verify", "tiny", lab)
    assert code == 0
    assert out.count("good: 102 tensors of resnet18, all finite, sha256 ") == 2
    assert [line.split("(")[1] for line in out.splitlines()] == [
        "as in the index)",
        "no index has it to compare)",
    ]


def test_verify_finds_what_is_wrong(lab, zoo, tmp_path):
    whole = lab.read_bytes()
    lab.write_bytes(whole[:-1] + b"\0")
    assert "is not the index's file" in zoo("verify", "tiny")[2]
    lab.unlink()
    assert "is not on this machine" in zoo("verify", "tiny")[2]
    other = make_file(tmp_path / "x.safetensors", metrics={"top1": 99.0})
    publish(lab.parent, [str(other)])
    index = lab.parent / "index.json"
    index.write_text(index.read_text().replace("99.0", "98.0"))
    code, _, err = zoo("verify", "tiny")
    assert code == 2
    assert "describes itself otherwise than the index describes tiny" in err


def test_authors_weights_are_refused(cache_folder, zoo):
    code, out, err = zoo("download", "resnet50-gradaug-authors")
    assert (code, out) == (2, "")
    assert "--allow-unverified" in err


@pytest.mark.parametrize("order", ["BGR", "RGB"])
def test_export_to_detectron2(lab, zoo, tmp_path, order):
    """Its own checkpointer loads the file into its own backbone."""
    out = tmp_path / "out" / "d2.pth"
    assert zoo("export", "tiny", out, "--to", "detectron2", "--format", order) == (
        0,
        f"{out}\n",
        "",
    )
    cfg = tiny_cfg()
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    net = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    DetectionCheckpointer(net).load(str(out))
    state, _ = read_backbone(lab)
    first = state["conv1.weight"]
    assert torch.equal(net.stem.conv1.weight, first if order == "RGB" else first.flip(1))
    assert torch.equal(net.res5[1].conv2.weight, state["layer4.1.conv2.weight"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_export_to_torchvision(lab, zoo, tmp_path, suffix):
    out = tmp_path / f"tv{suffix}"
    assert zoo("export", "tiny", out, "--to", "torchvision", "--classifier")[0] == 0
    weights = load_file(out) if suffix == ".safetensors" else torch.load(out)
    net = torchvision.models.resnet18(num_classes=10)
    net.load_state_dict(weights, strict=True)
    assert torch.equal(net.fc.weight, read_backbone(lab)[0]["fc.weight"])


def test_a_checkpoint_becomes_a_backbone_file(zoo, tmp_path):
    """The documented way into a zoo: from a torch.save of torchvision's names, BGR weights."""
    state = make_state()
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    info = make_info(channel_order="BGR")
    (tmp_path / "info.json").write_text(json.dumps(info.to_dict()))
    command = ["convert", tmp_path / "model.pth", tmp_path / "out.safetensors", "--to"]
    command += ["torchvision", "--from", "torchvision", "--info", tmp_path / "info.json"]
    assert zoo(*command)[0] == 0
    read, read_as = read_backbone(tmp_path / "out.safetensors")
    assert read_as == info
    assert torch.equal(read["conv1.weight"], state["conv1.weight"].flip(1).half().float())
    (tmp_path / "info.json").write_text("{")
    assert "info.json" in zoo(*command)[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("IN.pth out.pth --to timm", "--from must name the framework"),
        ("IN.pth out.bin --to timm", "must end in .safetensors or .pth"),
        ("IN.safetensors out.pth --to timm", "say whose with --from"),
        ("IN.pth out.pth --to timm --from authors", "does not exist"),
        ("IN.pth out.pth --to timm --from timm --info i.json", "--info makes a backbone file"),
        (
            "IN.pth out.safetensors --to torchvision --from timm --info i.json --format BGR",
            "--format must be RGB, as --info says",
        ),
    ],
)
def test_wrong_conversions(zoo, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "i.json").write_text(json.dumps(make_info().to_dict()))
    code, _, err = zoo("convert", *arguments.split())
    assert code == 2
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["i.json"]


def test_the_frameworks_are_the_converters():
    assert set(SOURCES) == set(NAMINGS)


def test_publish(zoo, tmp_path, lab):
    out = tmp_path / "other"
    code, text, _ = zoo("publish", out, lab, "--description", "A copy", "--claimed")
    assert code == 0
    assert text.startswith(f"tiny: {lab.stat().st_size} bytes, sha256 ")
    entry = json.loads((out / "index.json").read_text())["entries"]["tiny"]
    assert (entry["measured"], entry["description"]) == (False, "A copy")


def test_commands_and_variables_in_the_documents_exist():
    text = "".join((ROOT / name).read_text("utf-8") for name in ("MODEL_ZOO.md", "docs/zoo.md"))
    commands = re.findall(r"gradaug-det (zoo [a-z]+ [^`\n]*)", text)
    wanted = {"download", "verify", "export", "publish"}
    assert {command.split()[1] for command in commands} >= wanted
    for command in commands:
        args = cli._parser("zoo").parse_args(shlex.split(command, comments=True))
        assert callable(args.action), command
    known = {CACHE_VARIABLE, URL_VARIABLE, OFFLINE_VARIABLE}
    assert set(re.findall(r"GRADAUG_[A-Z_]+", text)) == known


@pytest.mark.parametrize("arguments", [[], ["burn"], ["download"], ["export", "tiny", "x.pth"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["zoo", *arguments])
    assert caught.value.code == 2
    assert "usage: gradaug-det zoo" in capsys.readouterr().err
