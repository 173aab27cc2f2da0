"""The hook inside real MMEngine runners."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

import json
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from torch.func import functional_call

from gradaug_det.core.slimming import slim_plan
from gradaug_det.errors import ConfigError, GradAugError, NonFiniteLossError
from gradaug_det.mmdet import GradAugHook
from gradaug_det.mmdet.batch import Padding, make_batch, transform_batch
from tests.mmdet.helpers import (
    TinyDataset,
    assert_same,
    collated,
    make_runner,
    parameters,
    tiny_model,
)

nms = import_module("mmcv.ops.nms")
HOOK = dict(num_subnets=2, min_width=0.7, flip_prob=0.5, seed=5)
PLAIN_SGD = dict(optimizer=dict(type="SGD", lr=1.0))


def train(model, tmp_path, hook=None, **kwargs):
    runner = make_runner(model, tmp_path, hook, **kwargs)
    runner.train()
    return runner


def first_batch(model):
    data = TinyDataset()
    data = model.data_preprocessor(collated([data[0], data[1]]), True)
    return make_batch(data["inputs"], data["data_samples"])


# ---- Algorithm 1 ------------------------------------------------------------------------------


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
    subs = GradAugHook(**HOOK).options.sampler.sample(0)
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


@pytest.mark.parametrize("hook", [None, dict(num_subnets=0)], ids=["no hook", "n = 0"])
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


# ---- exceptions -------------------------------------------------------------------------------


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


# ---- MMEngine's features ----------------------------------------------------------------------


def test_accumulated_gradients_are_the_mean_of_the_steps(tmp_path):
    """Two iterations of one step; each iteration counts once, sub-networks included."""
    steps = []
    for iteration in (0, 1):
        model = tiny_model("retinanet", double=True)
        before = parameters(model)
        runner = make_runner(
            model,
            tmp_path / str(iteration),
            HOOK | dict(supervision="both"),
            optim=PLAIN_SGD,
            loop=dict(type="IterBasedTrainLoop", max_iters=2),
        )
        loop = runner.train_loop
        loop.original, loop.run_iter = loop.run_iter, _only(loop, iteration)
        runner.train()
        steps.append({n: before[n] - p for n, p in parameters(model).items()})

    model = tiny_model("retinanet", double=True)
    before = parameters(model)
    runner = train(
        model,
        tmp_path / "both",
        HOOK | dict(supervision="both"),
        optim=PLAIN_SGD | dict(accumulative_counts=2),
        loop=dict(type="IterBasedTrainLoop", max_iters=2),
    )
    assert runner.optim_wrapper.inner_count == 2
    for name, value in parameters(model).items():
        mean = (steps[0][name] + steps[1][name]) / 2
        assert torch.allclose(before[name] - value, mean, rtol=1e-9, atol=1e-14), name


def _only(loop, wanted):
    """A run_iter that trains in one iteration alone."""

    def run_iter(data_batch):
        if loop._iter == wanted:
            loop.original(data_batch)
        else:
            loop._iter += 1

    return run_iter


@pytest.mark.parametrize("counts", [2, 3])
def test_the_last_incomplete_accumulation_is_scaled_like_mmengines(counts, tmp_path):
    runner = train(
        tiny_model("retinanet"),
        tmp_path,
        HOOK,
        optim=dict(accumulative_counts=counts),
        loop=dict(type="IterBasedTrainLoop", max_iters=4),
    )
    assert runner.optim_wrapper.inner_count == 4


def test_clipping_sees_the_sum_of_all_passes(tmp_path):
    model = tiny_model("retinanet", double=True)
    before = parameters(model)
    runner = train(
        model,
        tmp_path,
        HOOK | dict(supervision="labels"),
        optim=PLAIN_SGD | dict(clip_grad=dict(max_norm=1e-3)),
        loop=dict(type="IterBasedTrainLoop", max_iters=1),
    )
    step = torch.cat([(before[n] - p).flatten() for n, p in parameters(model).items()])
    assert step.norm().item() == pytest.approx(1e-3, rel=1e-6)
    unclipped = tiny_model("retinanet", double=True)
    train(
        unclipped,
        tmp_path / "b",
        HOOK | dict(supervision="labels"),
        optim=PLAIN_SGD,
        loop=dict(type="IterBasedTrainLoop", max_iters=1),
    )
    whole = torch.cat([(before[n] - p).flatten() for n, p in parameters(unclipped).items()])
    logged = runner.message_hub.get_scalar("train/grad_norm").current()
    assert whole.norm().item() == pytest.approx(logged, rel=1e-6)


def test_ema_averages_the_trained_weights(tmp_path):
    history = []

    class History(Hook):
        priority = "LOWEST"

        def after_train_iter(self, runner, *_, **__):
            history.append(parameters(runner.model))

    model = tiny_model("retinanet")
    runner = make_runner(
        model,
        tmp_path,
        HOOK,
        hooks=[dict(type="EMAHook", momentum=0.25), History()],
        loop=dict(type="IterBasedTrainLoop", max_iters=3),
    )
    runner.train()
    ema_hook = next(h for h in runner.hooks if type(h).__name__ == "EMAHook")
    averaged = dict(ema_hook.ema_model.module.named_parameters())
    assert history[0].keys() == averaged.keys()
    for name in averaged:
        expected = history[0][name]
        for step in history[1:]:
            expected = expected.lerp(step[name], 0.25)
        assert torch.allclose(averaged[name], expected, atol=1e-6), name


@pytest.mark.parametrize("by_epoch", [True, False])
def test_resumed_training_is_the_uninterrupted_one_bitwise(by_epoch, tmp_path):
    def run(folder, length, **kwargs):
        model = tiny_model()
        loop = (
            dict(by_epoch=True, max_epochs=length)
            if by_epoch
            else dict(type="IterBasedTrainLoop", max_iters=2 * length)
        )
        save = dict(type="CheckpointHook", interval=1 if by_epoch else 2, by_epoch=by_epoch)
        train(
            model,
            tmp_path / folder,
            HOOK | dict(supervision="both"),
            loop=loop,
            default_hooks=dict(checkpoint=save),
            **kwargs,
        )
        return model

    whole = run("whole", 2)
    run("half", 1)
    resumed = run("half", 2, resume=True)
    assert_same(whole.state_dict(), resumed.state_dict())


def test_log_line_and_visualizer_have_the_sub_networks(tmp_path, caplog):
    runner = train(
        tiny_model(),
        tmp_path,
        HOOK | dict(supervision="both", log_period=2),
        log_level="INFO",
        visualizer=dict(type="DetLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")]),
    )
    lines = [json.loads(line) for line in next(tmp_path.glob("*/vis_data/scalars.json")).open()]
    assert len(lines) == 2
    for line in lines:
        for index in (0, 1):
            prefix = f"gradaug/sub{index}"
            parts = [line[f"{prefix}/{n}"] for n in ("soft_cls", "soft_mask", "labels_rpn_cls")]
            assert line[f"{prefix}/loss"] > max(parts)
            assert 0.7 <= line[f"{prefix}/width"] <= 1
            assert line[f"{prefix}/scale"] in (1.0, 0.857, 0.714, 0.571)
        assert line["gradaug/sub1/width"] == 0.7
    text = next(tmp_path.glob("*/*.log")).read_text()
    assert "gradaug/sub0/loss: " in text and "GradAug iter 2: sub0 width " in text
    assert runner.message_hub.get_scalar("train/loss").data[0].size == 2


# ---- what cannot be done ----------------------------------------------------------------------


def test_settings_are_checked_where_the_config_is_read():
    build = HOOKS.build
    with pytest.raises(ConfigError, match=r"GradAugHook\.min_width must be a number in \(0, 1\]"):
        build(dict(type="GradAugHook", min_width=1.5))
    with pytest.raises(ConfigError, match=r"GradAugHook\.num_subnet is not .* 'num_subnets'"):
        build(dict(type="GradAugHook", num_subnet=2))
    with pytest.raises(ConfigError, match=r"supervision must be one of .*'soft'"):
        build(dict(type="GradAugHook", supervision="hard"))
    assert build(dict(type="GradAugHook", scales=[1.0, 0.5])).options.scales == (1.0, 0.5)
    assert build(dict(type="mmengine.GradAugHook")).options.num_subnets == 3


def test_a_compiled_step_is_refused(tmp_path):
    runner = make_runner(tiny_model("retinanet"), tmp_path, HOOK)
    runner.model.train_step = runner.model.train_step  # what compile=True leaves behind
    with pytest.raises(ConfigError, match="compile must be False"):
        runner.train()


def test_what_does_not_fit_the_detector_fails_before_the_first_step(tmp_path):
    model = tiny_model("retinanet")
    model.bbox_head.__class__ = type("OwnHead", (type(model.bbox_head),), {})
    runner = make_runner(model, tmp_path, HOOK)
    with pytest.raises(ConfigError, match=r"GradAugHook\.supervision .* OwnHead; use 'labels'"):
        runner.train()
    assert runner.iter == 0 and "train_step" not in vars(model)


def test_one_optimizer_wrapper_is_needed(tmp_path):
    model = tiny_model("retinanet")
    runner = make_runner(model, tmp_path, HOOK)
    one = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))
    runner.optim_wrapper = OptimWrapperDict(a=one)
    with pytest.raises(ConfigError, match="optim_wrapper is a OptimWrapperDict"):
        runner.train()


def test_a_train_step_that_goes_around_the_optimizer_wrapper(tmp_path):
    class Own(type(tiny_model("retinanet"))):
        def train_step(self, data, optim_wrapper):
            batch = self.data_preprocessor(data, True)
            loss, terms = self.parse_losses(self(**batch, mode="loss"))
            loss.backward()
            optim_wrapper.optimizer.step()
            return terms

    model = tiny_model("retinanet")
    model.__class__ = Own
    runner = make_runner(model, tmp_path, HOOK | dict(supervision="labels"))
    with pytest.raises(GradAugError, match=r"Own\.train_step never called OptimWrapper\.backward"):
        runner.train()
