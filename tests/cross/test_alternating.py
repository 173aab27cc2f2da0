"""Steps that are one pass, at full width or narrow, in real trainings of both frameworks."""

import copy

import pytest
import torch
from torch import nn

from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.sampling import sample_own_pass
from gradaug_det.core.slimming import slim_plan
from tests.cross.test_hooks import FRAMEWORKS, detectron2
from tests.d2 import helpers as d2
from tests.mmdet import helpers as mm

OPTIONS = {"passes": "alternating", "widths": [0.8, 0.5], "full_share": 0.25, "seed": 3}
WIDTHS = [sample_own_pass(GradAugOptions(**OPTIONS), step).width for step in range(24)]


def first(width):
    """The options with a seed whose first step has that width."""
    seeds = ({**OPTIONS, "seed": seed} for seed in range(100))
    return next(o for o in seeds if sample_own_pass(GradAugOptions(**o), 0).width == width)


def narrow_detector(model, width):
    """A copy whose backbone has fewer channels for good, and what reads it fewer inputs."""
    narrow = copy.deepcopy(model)
    backbone = getattr(narrow.backbone, "bottom_up", narrow.backbone)
    plan = slim_plan(backbone)
    for name, tensor in [*backbone.named_parameters(), *backbone.named_buffers()]:
        owner, _, key = name.rpartition(".")
        first = tuple(map(slice, plan.tensor_shape(name, tensor.shape, width)))
        set_tensor(backbone.get_submodule(owner), key, tensor.detach()[first].clone())
    kept = {plan.groups[g].channels: plan.groups[g].at(width) for g in plan.outputs}
    convolutions = {layer for layer in narrow.modules() if isinstance(layer, nn.Conv2d)}
    for layer in convolutions - set(backbone.modules()):  # laterals, and P6 of the last output
        inputs = kept.get(layer.in_channels, layer.in_channels)
        set_tensor(layer, "weight", layer.weight.detach()[:, :inputs].clone())
    return narrow


def set_tensor(layer, key, tensor):
    table = layer._parameters if key in layer._parameters else layer._buffers
    table[key] = nn.Parameter(tensor) if table is layer._parameters else tensor


def step_gradients(made, hook, model, tmp_path):
    """Gradients that the optimizer sees in a training's only step."""
    seen = {}
    model, owner, train, _ = made(tmp_path, *hook, model=model)
    if made is not detectron2:
        owner.optim_wrapper = owner.build_optim_wrapper(owner.optim_wrapper)
    optimizer = owner.optimizer if made is detectron2 else owner.optim_wrapper.optimizer
    optimizer.register_step_pre_hook(
        lambda *_: seen.update({n: p.grad for n, p in model.named_parameters()})
    )
    torch.manual_seed(1)
    train()
    return seen


@FRAMEWORKS
@pytest.mark.parametrize("width", [0.8, 0.5])
def test_the_gradient_is_a_narrow_detectors(made, hook, width, tmp_path):
    kind = "mask_rcnn" if made is detectron2 else "retinanet"  # MMCV's NMS is float32's alone
    model = (d2 if made is detectron2 else mm).tiny_model(kind, double=True)
    narrow = narrow_detector(model, width)
    expected = step_gradients(made, [], narrow, tmp_path / "narrow")
    found = step_gradients(made, [hook(**first(width))], model, tmp_path / "own")
    shapes = {name: p.shape for name, p in narrow.named_parameters()}
    assert sum(shapes[n] != p.shape for n, p in model.named_parameters()) > 20
    for name, gradient in found.items():
        inside = tuple(map(slice, shapes[name]))
        scale = max(expected[name].abs().max().item(), 1e-6)
        assert (gradient[inside] - expected[name]).abs().max().item() <= 1e-9 * scale, name
        gradient[inside] = 0
        assert not gradient.any(), f"{name} has a gradient of channels that took no part"
