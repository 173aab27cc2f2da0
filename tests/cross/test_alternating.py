"""Steps that are one pass, at full width or narrow, in real trainings of both frameworks."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.sampling import sample_own_pass
from gradaug_det.core.slimming import slim_plan
from gradaug_det.d2 import backbone as d2_backbone
from gradaug_det.mmdet import backbone as mm_backbone
from tests.core.narrow import slices
from tests.cross.test_hooks import FRAMEWORKS, copied, detectron2, mmdetection, same
from tests.d2 import helpers as d2
from tests.mmdet import helpers as mm

OPTIONS = {"passes": "alternating", "widths": [0.8, 0.5], "full_share": 0.25, "seed": 20}


def first(width):
    """The options with a seed whose first step has that width."""
    seeds = ({**OPTIONS, "seed": seed} for seed in range(100))
    return next(o for o in seeds if sample_own_pass(GradAugOptions(**o), 0).width == width)


def narrow_detector(model, width, slimmed_part, slim):
    """A copy that has fewer channels for good, and what reads narrow maps fewer inputs."""
    narrow = copy.deepcopy(model)
    slimmed = slimmed_part(narrow, slim)
    plan = slim_plan(slimmed)
    tensors = dict([*slimmed.named_parameters(), *slimmed.named_buffers()])
    for name, first in slices(plan, tensors, width).items():
        owner, _, key = name.rpartition(".")
        set_tensor(slimmed.get_submodule(owner), key, first.detach().clone())
    kept = {plan.groups[g].channels: plan.groups[g].at(width) for g in plan.outputs}
    convolutions = {layer for layer in narrow.modules() if isinstance(layer, nn.Conv2d)}
    for layer in convolutions - set(slimmed.modules()):  # laterals, and P6 of the last output
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
@pytest.mark.parametrize("width, slim", [(0.8, "backbone"), (0.5, "detector")])
def test_the_gradient_is_a_narrow_detectors(made, hook, width, slim, tmp_path):
    kind = "mask_rcnn" if made is detectron2 else "retinanet"  # MMCV's NMS is float32's alone
    # Detectron2's NMS, which looks for the plan of all, does not mix float64 with its anchors.
    double = not (made is detectron2 and slim == "detector")
    model = (d2 if made is detectron2 else mm).tiny_model(kind, double=double)
    slimmed_part = (d2_backbone if made is detectron2 else mm_backbone).slimmed_part
    narrow = narrow_detector(model, width, slimmed_part, slim)
    expected = step_gradients(made, [], narrow, tmp_path / "narrow")
    found = step_gradients(made, [hook(**first(width), slim=slim)], model, tmp_path / "own")
    shapes = {name: p.shape for name, p in narrow.named_parameters()}
    accuracy = 1e-9 if double else 1e-4  # in float64: tests/d2/test_slim_detector.py
    assert sum(shapes[n] != p.shape for n, p in model.named_parameters()) > 20
    for name, gradient in found.items():
        inside = tuple(map(slice, shapes[name]))
        scale = max(expected[name].abs().max().item(), 1e-6)
        assert (gradient[inside] - expected[name]).abs().max().item() <= accuracy * scale, name
        gradient[inside] = 0
        assert not gradient.any(), f"{name} has a gradient of channels that took no part"


@FRAMEWORKS
def test_each_width_has_its_own_curves(made, hook, tmp_path, caplog):
    """The framework's own hold the losses of all widths, one after another."""
    model, owner, train, _ = made(tmp_path, hook(**OPTIONS, log_period=1), steps=3)
    before = copied(model)
    with caplog.at_level("INFO"):
        if made is mmdetection:
            owner.logger.addHandler(caplog.handler)
            owner.logger.setLevel("INFO")
        train()
    widths = [sample_own_pass(GradAugOptions(**OPTIONS), step).width for step in range(3)]
    assert set(widths) == {1.0, 0.8, 0.5}
    if made is detectron2:
        storage = owner.storage.histories()
        logged = {name: [v for v, _ in storage[name].values()] for name in storage}
        total = "total_loss"
        shown = sorted(name for name in logged if "gradaug" in name and "loss" in name)
        assert shown == [f"gradaug/w{width:g}/loss" for width in sorted(widths)]
    else:
        logged = owner.message_hub.log_scalars
        logged = {k.removeprefix("train/"): list(v.data[0]) for k, v in logged.items()}
        total = "loss"
    assert logged["gradaug/width"] == widths
    own = [logged[f"gradaug/w{width:g}/loss"] for width in widths]
    assert [value for (value,) in own] == pytest.approx(logged[total], rel=1e-5)
    lines = [r.getMessage() for r in caplog.records if r.getMessage().startswith("GradAug iter")]
    for line, width in zip(lines, widths, strict=True):
        assert f": width {width:g} loss " in line
    assert not same(copied(model), before)


@FRAMEWORKS
def test_an_overflow_in_a_narrow_step_skips_it(made, hook, tmp_path):
    model, _, train, scaler = made(tmp_path, hook(**first(0.5)), scale=2.0**70)
    model.register_forward_hook(lambda _m, _a, losses: tree_map(lambda x: x * 1e20, losses))
    before = copied(model)
    train()
    assert same(copied(model), before) and scaler.get_scale() == 2.0**69


@FRAMEWORKS
def test_running_statistics_are_those_of_full_steps(made, hook, tmp_path):
    """Of heads that are whole in every step, too; what counts data counts in every step."""
    build = {detectron2: lambda: d2.tiny_model("retinanet", norm="BN")}
    build[mmdetection] = lambda: mm.tiny_model("retinanet", norm_eval=False)
    model = build[made]()
    model.register_buffer("seen", torch.zeros(1))
    model.register_forward_pre_hook(lambda m, _: [m.seen.add_(1)][1:] or None)
    before = copied(model)
    made(tmp_path / "narrow", hook(**first(0.5)), model=model)[2]()
    names = [name for name in before if "running" in name]
    assert len(names) > 30 and all(torch.equal(model.state_dict()[n], before[n]) for n in names)
    assert model.seen.item() == 1 and all(m.training for m in model.modules())
    made(tmp_path / "full", hook(**first(1.0)), model=model)[2]()
    assert not any(torch.equal(model.state_dict()[name], before[name]) for name in names)
