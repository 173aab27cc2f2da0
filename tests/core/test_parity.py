"""Equality with the authors' own implementation, on numbers recorded from it (float64).

tests/data/reference/README.md says how they were made and how well conditioned each is.
"""

import hashlib
import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.models import resnet50

from gradaug_det.core.regularizer import gradaug_step
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.core.slimming import at_width, slim_plan
from gradaug_det.pretrain.classifier import Classifier
from gradaug_det.zoo.convert import rename

FOLDER = Path(__file__).parents[1] / "data" / "reference"
META = json.loads((FOLDER / "authors_resnet50.json").read_text())
WIDTHS = (1.0, 0.95, 0.9, 0.9375)


def recorded_tensor(name, shape):
    g = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if len(shape) >= 2:
        return torch.randn(shape, generator=g) * math.sqrt(2 / (math.prod(shape) / shape[0]))
    if name.endswith("running_var"):
        return 1 + 0.1 * torch.rand(shape, generator=g)
    if name.endswith("weight"):
        return 1 + 0.1 * torch.randn(shape, generator=g)
    return 0.1 * torch.randn(shape, generator=g)


# torchvision's tensor names -> the authors'.
THEIRS = rename({e["name"]: e["name"] for e in META["state_dict"]}, "authors", "torchvision")
OURS = {theirs: ours for ours, theirs in THEIRS.items()}


@pytest.fixture(scope="module")
def reference():
    return np.load(FOLDER / "authors_resnet50.npz", allow_pickle=False)


@pytest.fixture(scope="module")
def state():
    return {e["name"]: recorded_tensor(e["name"], e["shape"]) for e in META["state_dict"]}


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network(state):
    model = resnet50().double()
    doubles = {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
    model.load_state_dict(rename(doubles, "authors", "torchvision"))
    return model.train()


def assert_close(actual, expected, rtol=1e-9):
    actual = np.asarray(actual, dtype=np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= rtol * np.abs(expected).max()


def mean_std(x):
    return [x.mean().item(), x.std(unbiased=False).item()]


def norm_sum(x):
    return [x.norm().item(), x.sum().item()]


def test_draws_equal_the_recorded_ones(state, image):
    digest = hashlib.sha256()
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            digest.update(name.encode())
            digest.update(value.contiguous().numpy().astype("<f4").tobytes())
    digest.update(image.numpy().astype("<f4").tobytes())
    assert digest.hexdigest() == META["recipe_sha256"], "not the model's fault: torch draws differ"


def stages(model):
    """Records the output of stem and stages as the authors' modules end them."""
    seen = {}
    ends = {
        "stem": "maxpool",
        "res2": "layer1",
        "res3": "layer2",
        "res4": "layer3",
        "res5": "layer4",
    }
    for stage, name in ends.items():
        model.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, stage=stage: seen.__setitem__(stage, out.detach())
        )
    return seen


def test_eval_mode_full_width(network, image, reference):
    seen = stages(network.eval())
    with torch.no_grad():
        logits = network(image.double())
    assert_close(logits, reference["eval/w1.0/logits"])
    for stage, out in seen.items():
        assert_close(mean_std(out), reference[f"eval/w1.0/{stage}/mean_std"])
        assert_close(out.flatten()[:16], reference[f"eval/w1.0/{stage}/first16"])


@pytest.mark.parametrize("width", WIDTHS)
def test_train_mode_logits_and_stages(network, image, reference, width):
    seen = stages(network)
    with torch.no_grad(), at_width(network, width, norm="batch"):
        logits = network(image.double())
    assert_close(logits, reference[f"train/w{width}/logits"])
    for stage, out in seen.items():
        assert_close(mean_std(out), reference[f"train/w{width}/{stage}/mean_std"])
        assert_close(out.flatten()[:16], reference[f"train/w{width}/{stage}/first16"])


@pytest.mark.parametrize("width", [*WIDTHS, 0.97, 0.93])
def test_channels_of_every_layer(network, width):
    plan = slim_plan(network)
    recorded = META["layer_channels"][f"w{width}"]
    assert len(recorded) == 54  # 53 convolutions and the classifier
    for name, (inputs, outputs) in recorded.items():
        weight = OURS[f"{name}.weight"]
        shape = plan.tensor_shape(weight, network.get_parameter(weight).shape, width)
        assert (shape[1], shape[0]) == (inputs, outputs), name


@dataclass(frozen=True)
class AuthorsResize:
    """The authors' transform: F.interpolate to a size, corners aligned."""

    size: int

    def image(self, image):
        return F.interpolate(image, (self.size,) * 2, mode="bilinear", align_corners=True)


class Recording(Classifier):
    """Notes what the reference notes of each pass."""

    def full_pass(self, batch):
        losses, logits = super().full_pass(batch)
        self.inputs, self.outputs = [], [logits]
        return losses, logits

    def sub_network_pass(self, batch, soft_target, sub):
        hook = self.backbone.register_forward_hook(self._note)
        try:
            return super().sub_network_pass(batch, soft_target, sub)
        finally:
            hook.remove()

    def _note(self, _module, args, out):
        self.inputs.append(args[0])
        self.outputs.append(out.detach())


@pytest.mark.parametrize(("prefix", "sizes"), [("step", (64, 48, 32)), ("step_alt", (64, 56, 48))])
def test_whole_step(network, image, reference, prefix, sizes):
    classifier = Recording(network)
    subs = [
        SubNetwork(i, width, AuthorsResize(size))
        for i, (width, size) in enumerate(zip((0.97, 0.93, 0.9), sizes, strict=True))
    ]
    parameters = {THEIRS[n]: p for n, p in network.named_parameters()}
    after = ["after_full", "after_sub0", "after_sub1", "after_sub2"]
    norms, passes = [], iter(after)
    compared = 0

    def loose(stage):  # 1x1 maps of two images: see the reference's README
        return prefix == "step" and stage == "after_sub2"

    def backward(loss):
        nonlocal compared
        loss.backward()
        stage = next(passes)
        norms.append([parameters[n].grad.norm().item() for n in META["parameters"]])
        for key in reference.files:
            if not key.startswith(f"{prefix}/{stage}/grad/") or loose(stage):
                continue
            name, what = key.removeprefix(f"{prefix}/{stage}/grad/").rsplit("/", 1)
            grad = parameters[name].grad.flatten()
            value = {"norm_sum": norm_sum(grad), "first8": grad[:8], "last8": grad[-8:]}[what]
            assert_close(value, reference[key])
            compared += 1

    batch = (image.double(), torch.tensor([3, 7]))
    losses, results = gradaug_step(classifier, batch, subs, backward)

    totals = [losses["loss_cls"].item()] + [r.total.item() for r in results]
    exact = 3 if prefix == "step" else 4
    for loss, expected in list(zip(totals, reference[f"{prefix}/losses"], strict=True))[:exact]:
        assert loss == pytest.approx(expected, rel=1e-9)
    assert totals[3] == pytest.approx(reference[f"{prefix}/losses"][3], rel=1e-5)
    assert_close(classifier.outputs[0], reference[f"{prefix}/full/logits"])
    for i, out in enumerate(classifier.outputs[1:]):
        rtol = 1e-4 if prefix == "step" and i == 2 else 1e-9
        assert_close(out, reference[f"{prefix}/sub{i}/logits"], rtol)
        if f"{prefix}/sub{i}/input_first8" in reference.files:
            assert_close(
                classifier.inputs[i].flatten()[:8], reference[f"{prefix}/sub{i}/input_first8"]
            )
            assert_close(
                mean_std(classifier.inputs[i]), reference[f"{prefix}/sub{i}/input_mean_std"]
            )
    rows = 3 if prefix == "step" else 4
    if f"{prefix}/grad_norm_per_parameter" in reference.files:
        assert_close(norms[:rows], reference[f"{prefix}/grad_norm_per_parameter"][:rows])
    assert_close(
        [math.hypot(*row) for row in norms[:rows]],
        reference[f"{prefix}/grad_norm_cumulative"][:rows],
    )
    assert compared >= 3 * len(after) * (rows - 1)

    # Running statistics are those of the full pass alone: sub-networks never touch them.
    for key in reference.files:
        if key.startswith(f"{prefix}/buffer/"):
            name = key.removeprefix(f"{prefix}/buffer/").removesuffix("/norm_sum")
            assert_close(norm_sum(network.get_buffer(OURS[name])), reference[key])
