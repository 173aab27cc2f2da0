"""Two gloo processes under torchrun: one process's gradients, which cross the network once."""

import json
import subprocess
import sys

import pytest
import torch

from gradaug_det.core.regularizer import gradaug_step
from gradaug_det.core.sampling import sample_own_pass, sample_sub_networks
from gradaug_det.pretrain.data import normalize, train_loader
from gradaug_det.utils.seeding import isolated_rng, stable_seed
from tests.pretrain.ddp_worker import METHODS
from tests.pretrain.helpers import CONFIGS, ROOT, TINY, pretraining, tiny_recipe

TORCHRUN = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone"]


def torchrun(*command):
    result = subprocess.run(
        [*TORCHRUN, "--nproc_per_node=2", *map(str, command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One step of each method in two processes."""
    folder = tmp_path_factory.mktemp("ddp")
    torchrun("-m", "tests.pretrain.ddp_worker", folder, 2)
    return folder


@pytest.mark.integration
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method[0])
def test_gradients_are_the_mean_over_processes_and_cross_once(method, trained, tmp_path):
    files = [trained / f"{method[0]}_rank{rank}.pth" for rank in (0, 1)]
    ranks = [torch.load(file, weights_only=True) for file in files]
    for name, gradient in ranks[0]["gradients"].items():
        assert torch.equal(gradient, ranks[1]["gradients"][name]), name
    for name, tensor in ranks[0]["weights"].items():
        same = torch.equal(tensor, ranks[1]["weights"][name])
        # Running statistics are each process's own, as in any DDP training without SyncBN.
        assert same or "running" in name, name

    training = pretraining(tiny_recipe(*method), tmp_path / "single")
    options = training.recipe.options
    assert (sample_own_pass(options, 0).width < 1) == (method[0] == "anywidth")
    images, labels = next(iter(train_loader(training.images, training.recipe, training.batches)))
    for rank, part in enumerate(torch.arange(32).split(16)):
        with isolated_rng(stable_seed("full pass", 3, 0, rank)):
            gradaug_step(
                training.classifier,
                (normalize(images[part]), labels[part]),
                sample_sub_networks(options, 0),
                lambda loss: (loss / 2).backward(),
                own=sample_own_pass(options, 0),
            )
    for name, parameter in training.model.named_parameters():
        ours = ranks[0]["gradients"][name]
        assert torch.allclose(ours, parameter.grad, rtol=1e-3, atol=1e-6), name
    parameters = sum(p.numel() * 4 for p in training.model.parameters())
    assert ranks[0]["bytes"] == parameters


@pytest.mark.integration
def test_the_tool_under_torchrun(tmp_path):
    config = CONFIGS / "mini_resnet18_gradaug.yaml"
    overrides = [*TINY, "epochs=1"]
    command = ["tools/pretrain.py", "--config", config, "--out", tmp_path, "--accelerator", "cpu"]
    torchrun(*command, *overrides)
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert 0 <= content["metrics"]["top1"] <= 100
    assert content["recipe"]["name"] == "mini-resnet18-gradaug"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"backbone.safetensors", "metrics.json", "tensorboard"}
    assert list((tmp_path / "tensorboard").glob("events*"))
