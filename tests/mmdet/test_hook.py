"""The hook inside real MMEngine runners: Algorithm 1, controls, exceptions."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from torch.func import functional_call

from gradaug_det.core.sampling import sample_sub_networks
from gradaug_det.core.slimming import slim_plan
from gradaug_det.errors import NonFiniteLossError
from gradaug_det.mmdet import GradAugHook
from gradaug_det.mmdet.batch import Padding, make_batch, transform_batch
from tests.mmdet.helpers import (
    HOOK,
    PLAIN_SGD,
    TinyDataset,
    assert_same,
    collated,
    make_runner,
    parameters,
    tiny_model,
    train,
)

nms = import_module("mmcv.ops.nms")


def first_batch(model):
    data = TinyDataset()
    data = model.data_preprocessor(collated([data[0], data[1]]), True)
    return make_batch(data["inputs"], data["data_samples"])


def sliced_losses(model, batch, sub):
    """The sub-network's total loss without at_width: slices handed to functional_call."""
    plan = slim_plan(model.backbone)
    slices = {}
    for name, tensor in [*model.backbone.named_parameters(), *model.backbone.named_buffers()]:
        shape = plan.tensor_shape(name, tensor.shape, sub.width)
        slices[f"backbone.{name}"] = tensor[tuple(slice(0, n) for n in shape)]

    def pad(_module, _args, outputs):
        channels = (64, 128, 256, 512)
        return tuple(
            F.pad(x, (0, 0, 0, 0, 0, c - x.shape[1]))
            for x, c in zip(outputs, channels, strict=True)
        )

    new = transform_batch(batch, sub.transform, Padding.of(model.data_preprocessor))
    handle = model.backbone.register_forward_hook(pad)
    torch.manual_seed(sub.seed)
    losses = functional_call(
        model, slices, (new.inputs, new.samples), dict(mode="loss"), tie_weights=False
    )
    handle.remove()
    return model.parse_losses(losses)[0]


@pytest.fixture
def float64_nms(monkeypatch):
    """MMCV's compiled NMS takes float32 alone on a CPU; all the rest runs in float64."""
    compiled = nms.ext_module

    def cast(boxes, scores, **kwargs):
        return compiled.nms(boxes.float(), scores.float(), **kwargs)

    monkeypatch.setattr(nms, "ext_module", SimpleNamespace(nms=cast))


@pytest.mark.parametrize("kind", ["mask_rcnn", "retinanet"])
def test_exact_gradient_of_labels(kind, tmp_path, float64_nms):
    model = tiny_model(kind, double=True)
    batch = first_batch(model)
    expected = tiny_model(kind, double=True)
    torch.manual_seed(1000)  # as ReseedHook does
    total = expected.parse_losses(expected(batch.inputs, batch.samples, mode="loss"))[0]
    total.backward()
    subs = sample_sub_networks(GradAugHook(**HOOK).options, 0)
    assert any(s.transform.flip for s in subs) and any(s.transform.scale < 1 for s in subs)
    for sub in subs:
        sliced_losses(expected, batch, sub).backward()

    before = parameters(model)
    train(
        model,
        tmp_path,
        HOOK | dict(supervision="labels"),
        optim=PLAIN_SGD,
        loop=dict(type="IterBasedTrainLoop", max_iters=1),
    )
    largest = 0.0
    for name, parameter in expected.named_parameters():
        step = before[name] - dict(model.named_parameters())[name].detach()
        gradient = torch.zeros_like(step) if parameter.grad is None else parameter.grad
        scale = gradient.abs().max().clamp(min=1e-6)
        largest = max(largest, ((step - gradient).abs().max() / scale).item())
    assert largest < 1e-9


PLAIN = {"no hook": None, "n = 0": dict(num_subnets=0)}
PLAIN["all full"] = dict(passes="alternating", full_share=1.0)
PLAIN["not yet"] = dict(supervision="both", start=100)


@pytest.mark.parametrize("hook", PLAIN.values(), ids=PLAIN)
def test_without_sub_networks_it_is_plain_mmdetection_bitwise(hook, tmp_path):
    plain, ours = tiny_model(backbone="ResNet"), tiny_model()
    train(plain, tmp_path / "a")
    train(ours, tmp_path / "b", hook)
    assert_same(plain.state_dict(), ours.state_dict())


def test_the_full_pass_is_plain_mmdetections_bitwise(tmp_path):
    hook = HOOK | dict(supervision="both")
    plain = train(tiny_model(backbone="ResNet"), tmp_path / "a")
    ours = train(tiny_model(), tmp_path / "b", hook)
    for name in ("loss_cls", "loss_mask", "loss_rpn_cls"):
        logged = [r.message_hub.get_scalar(f"train/{name}").data[0] for r in (plain, ours)]
        assert logged[0][0] == logged[1][0] and logged[0][1] != logged[1][1]


def test_weights_load_into_plain_mmdetection(tmp_path):
    checkpoint = dict(checkpoint=dict(type="CheckpointHook", interval=1, by_epoch=True))
    ours = tiny_model()
    train(ours, tmp_path, HOOK, default_hooks=checkpoint)
    plain = tiny_model(backbone="ResNet", seed=9)
    saved = torch.load(tmp_path / "epoch_1.pth", weights_only=False)
    plain.load_state_dict(saved["state_dict"], strict=True)
    assert_same(plain.state_dict(), ours.state_dict())


def test_running_statistics_are_the_full_networks(tmp_path):
    plain = tiny_model(backbone="ResNet", norm_eval=False)
    ours = tiny_model(norm_eval=False)
    still = dict(optimizer=dict(type="SGD", lr=0.0))
    train(plain, tmp_path / "a", optim=still)
    train(ours, tmp_path / "b", HOOK | dict(supervision="both", subnet_norm="batch"), optim=still)
    assert_same(plain.state_dict(), ours.state_dict())


def broken_in_pass(number, what):
    """A hook that breaks the n-th forward pass of the box head."""

    class Breaking(Hook):
        def before_train(self, runner):
            self.calls = 0

            def forward_hook(_module, _args, out):
                self.calls += 1
                if self.calls == number:
                    if what is RuntimeError:
                        raise RuntimeError("out of memory")
                    return tuple(x * float("nan") for x in out)
                return None

            runner.model.roi_head.bbox_head.register_forward_hook(forward_hook)

    return Breaking()


@pytest.mark.parametrize("what", [RuntimeError, NonFiniteLossError])
@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("supervision", ["soft", "labels"])
def test_exception_restores_everything_and_takes_no_step(what, number, supervision, tmp_path):
    model = tiny_model()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    hooks = len(model._forward_pre_hooks), len(model.rpn_head._forward_hooks)
    runner = make_runner(
        model, tmp_path, HOOK | dict(supervision=supervision), hooks=[broken_in_pass(number, what)]
    )
    with pytest.raises(what):
        runner.train()
    assert_same(before, model.state_dict())
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: before[n].shape for n, _ in model.named_parameters()
    }
    assert "train_step" not in vars(model) and "backward" not in vars(runner.optim_wrapper)
    assert (len(model._forward_pre_hooks), len(model.rpn_head._forward_hooks)) == hooks
    assert not runner.optim_wrapper.optimizer.state
    # The model still trains, plainly.
    data = TinyDataset()
    model.roi_head.bbox_head._forward_hooks.clear()
    model.train_step(collated([data[0], data[1]]), runner.optim_wrapper)
    assert "gradaug" not in str(list(runner.message_hub.log_scalars)[-1])


def test_channels_last_changes_the_memory_format_alone(tmp_path):
    trained = {}
    for channels_last in (False, True):
        model = tiny_model("retinanet", double=True)  # no proposals that rounding chooses
        loop = dict(type="IterBasedTrainLoop", max_iters=1)
        hook = HOOK | dict(channels_last=channels_last)
        train(model, tmp_path / str(channels_last), hook, optim=PLAIN_SGD, loop=loop)
        weight = model.backbone.layer2[0].conv2.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        trained[channels_last] = {k: v.clone() for k, v in model.state_dict().items()}
    for name, tensor in trained[False].items():
        torch.testing.assert_close(trained[True][name], tensor, rtol=1e-6, atol=1e-7)
