"""A backbone's accuracy by one command: the images are the recipe's, the preprocessing its own."""

import importlib.util
import json
import shlex
from dataclasses import replace

import pytest
import torch

from gradaug_det.errors import ZooError
from gradaug_det.pretrain.data import load_images, normalize
from gradaug_det.pretrain.recipe import load_recipe
from gradaug_det.pretrain.scoring import EPSILONS, fgsm, load_classifier
from gradaug_det.zoo.backbone import read_backbone, save_backbone
from gradaug_det.zoo.fetch import fetch
from tests.pretrain.helpers import CONFIGS, ROOT

NAME = "mini-resnet18-gradaug"
CONFIG = CONFIGS / "mini_resnet18_gradaug.yaml"
OVERRIDES = ("data.holdout=0.01", "data.size=32")  # 40 images


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("pretrain", ROOT / "tools" / "pretrain.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def evaluate(tool, capsys, backbone, *more):
    config = ["--config", str(CONFIG), *OVERRIDES, *more]
    code = tool.main([*config, "--accelerator", "cpu", "--eval-only", str(backbone)])
    return code, capsys.readouterr()


def test_what_the_tool_prints_is_the_networks_accuracy(tool, capsys, tmp_path):
    code, printed = evaluate(tool, capsys, f"gradaug://{NAME}")
    metrics = json.loads(printed.out)
    assert code == 0
    recipe = load_recipe(CONFIG, OVERRIDES)
    every = list(load_images(recipe.data, recipe.seed).val)
    pixels, labels = torch.stack([x for x, _ in every]), torch.tensor([y for _, y in every])
    model = load_classifier(NAME)
    for name, epsilon in {"top1": 0, **{f"fgsm{e}": e for e in EPSILONS}}.items():
        moved = fgsm(model, pixels, labels, epsilon)
        with torch.no_grad():
            right = (model(normalize(moved)).argmax(1) == labels).float().mean()
        assert metrics[name] == pytest.approx(100 * right.item()), name
    assert metrics["top1"] > metrics["fgsm1"] > metrics["fgsm4"]

    # The same network for BGR images.
    state, info = read_backbone(fetch(NAME))
    state["conv1.weight"] = state["conv1.weight"].flip(1)
    order = {"channel_order": "BGR", "pixel_mean": info.pixel_mean[::-1]}
    order |= {"pixel_std": info.pixel_std[::-1]}
    file = save_backbone(tmp_path / "bgr.safetensors", state, replace(info, **order))
    assert json.loads(evaluate(tool, capsys, file)[1].out) == metrics


def test_what_has_no_accuracy_is_refused(tool, capsys, tmp_path):
    state, info = read_backbone(fetch(NAME))
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    save_backbone(tmp_path / "headless.safetensors", headless, info)
    with pytest.raises(ZooError, match="has no classifier under torchvision's names"):
        load_classifier(str(tmp_path / "headless.safetensors"))
    for key, value in (("pixel_mean", (127.5, 127.5, 127.5)), ("stride_in", "1x1")):
        other = save_backbone(tmp_path / "other.safetensors", state, replace(info, **{key: value}))
        with pytest.raises(ZooError, match=rf"wants {key} .*1.*; top-1 is measured here with .*3"):
            load_classifier(str(other))
    for split in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            (tmp_path / split / name / "x.jpg").touch()
    folder = ("data.kind=imagefolder", f"data.root={tmp_path}", "data.holdout=0")
    code, printed = evaluate(tool, capsys, NAME, *folder)
    assert code == 2
    assert printed.err == f"error: data has 2 classes, {NAME} knows 10\n"
    code, printed = evaluate(tool, capsys, "no-such")
    assert code == 2 and "no-such" in printed.err


def test_the_commands_of_the_model_zoo_are_right_but_for_the_images(
    tool, capsys, tmp_path, monkeypatch
):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADAUG_CACHE", str(tmp_path))
    lines = (ROOT / "MODEL_ZOO.md").read_text("utf-8").splitlines()
    start = "torchrun --nproc_per_node 8 tools/pretrain.py "
    commands = [shlex.split(line.removeprefix(start)) for line in lines if line.startswith(start)]
    assert len(commands) == 5
    for command in commands:
        assert tool.main([*command, "--accelerator", "cpu"]) == 2
        message = capsys.readouterr().err
        if "--eval-only" in command:
            assert "resnet50-gradaug-authors --allow-unverified` once" in message
        else:
            assert message.startswith("error: data.root 'IMAGENET' has no folder 'train'")
