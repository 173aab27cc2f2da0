"""What the hook adds to a step of Detectron2's trainers, and what it leaves alone."""

import copy
import logging
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer
from detectron2.utils.events import EventStorage, get_event_storage
from torch.func import functional_call

from gradaug_det.core.gradients import current_autocast
from gradaug_det.core.sampling import sample_sub_networks
from gradaug_det.core.slimming import slim_plan
from gradaug_det.d2 import GradAugHook
from gradaug_det.d2.batch import transform_batch
from gradaug_det.d2.detector import AsideStorage, GradAugDetector
from gradaug_det.errors import ConfigError, GradAugError, NonFiniteLossError
from gradaug_det.utils.seeding import isolated_rng
from tests.amp import needs_bfloat16_nms

from .helpers import (
    KINDS,
    ScaledTrainer,
    batches,
    make_trainer,
    storage,
    tiny_batch,
    tiny_model,
    train,
)

SUBS = {"num_subnets": 2, "min_width": 0.8, "scales": [1.0, 0.75], "flip_prob": 0.5, "seed": 3}
# The first step is narrow, the second one is not.
ALTERNATING = {"passes": "alternating", "widths": [0.5], "full_share": 0.5, "seed": 1}
BOTH_KINDS = pytest.mark.parametrize("options", [SUBS, ALTERNATING], ids=["added", "alternating"])


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_equal(one, two):
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]), key


def test_what_leaves_nothing_out_or_nothing_full_is_told(caplog):
    train(tiny_model(), GradAugHook(passes="alternating", full_share=0, widths=[0.5]), steps=1)
    assert "`full_share` is 0, so that nothing is trained at full width" in caplog.text
    with pytest.raises(ConfigError, match=r"divisor must be smaller, got 4096: .* at width 0.5"):
        train(tiny_model(), GradAugHook(passes="alternating", divisor=4096), steps=1)


# ---- bitwise plain training ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"num_subnets": 0},
        {"passes": "alternating", "full_share": 1.0},
        {"supervision": "soft", "soft_weight": 0.0},
        {"supervision": "labels", "start": 100},
        {"supervision": "labels", "labels_weight": 0.0},
        {"supervision": "both", "labels_weight": 0.0, "soft_weight": 0.0},
    ],
)
def test_nothing_to_do_is_bitwise_plain_training(options, caplog):
    model = tiny_model()
    plain = copy.deepcopy(model)
    ours = train(model, GradAugHook(**options), steps=4)
    said = "`start` is 100, and the training ends after 4 iterations" in caplog.text
    assert said is ("start" in options)
    theirs = train(plain, None, steps=4)
    assert_equal(weights(model), weights(plain))
    assert_equal(
        {k: torch.tensor(v[0]) for k, v in ours.storage.latest().items() if "time" not in k},
        {k: torch.tensor(v[0]) for k, v in theirs.storage.latest().items() if "time" not in k},
    )


def test_the_full_pass_is_not_disturbed():
    """Sampling of proposals in the full pass draws the same random numbers with and without."""
    losses = {}
    for name, hook in {"plain": None, "gradaug": GradAugHook(supervision="both", **SUBS)}.items():
        trainer = train(tiny_model(), hook, steps=3, lr=0.0)
        losses[name] = {
            k: v
            for k, v in trainer.storage.latest().items()
            if "gradaug" not in k and "time" not in k
        }
    assert losses["plain"] == losses["gradaug"]


# ---- exact gradients ----------------------------------------------------------------------------


def step_gradients(model, hook, data):
    """Gradients that the optimizer sees in the first step."""
    seen = {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def note(*_):
        seen.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})

    optimizer.register_step_pre_hook(note)
    train(model, hook, steps=1, optimizer=optimizer, data=data)
    return seen


def add(total, model):
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            total[name] = total.get(name, 0) + parameter.grad


def assert_gradients(actual, expected, rtol):
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        scale = max(expected[name].abs().max().item(), 1e-6)
        assert (gradient - expected[name]).abs().max().item() <= rtol * scale, name


@pytest.mark.parametrize("kind", KINDS)
def test_labels_gradients_are_full_plus_each_sub_networks(kind):
    """The sub-networks' part is computed without gradaug's context manager and hook."""
    model, data = tiny_model(kind, double=True), [tiny_batch(5)]
    hook = GradAugHook(supervision="labels", labels_weight=0.5, **SUBS)
    expected, reference = {}, copy.deepcopy(model)
    torch.manual_seed(1)
    with storage():
        sum(reference(data[0]).values()).backward()
    add(expected, reference)
    bottom_up = model.backbone.bottom_up
    plan = slim_plan(bottom_up)
    for sub in sample_sub_networks(hook.options, 0):
        narrow = copy.deepcopy(reference)  # RetinaNet's loss normalizer is the full pass's
        narrow.zero_grad()
        tensors = dict(narrow.backbone.bottom_up.named_parameters())
        tensors |= dict(narrow.backbone.bottom_up.named_buffers())
        sliced = {
            f"backbone.bottom_up.{name}": tensor[
                tuple(slice(n) for n in plan.tensor_shape(name, tensor.shape, sub.width))
            ]
            for name, tensor in tensors.items()
        }
        full = {k: s.channels for k, s in bottom_up.output_shape().items()}
        narrow.backbone.bottom_up.register_forward_hook(
            lambda _m, _i, out, full=full: {
                k: torch.nn.functional.pad(v, (0, 0, 0, 0, 0, full[k] - v.shape[1]))
                for k, v in out.items()
            }
        )
        with storage(), isolated_rng(sub.seed):
            losses = functional_call(narrow, sliced, (transform_batch(data[0], sub.transform),))
        (0.5 * sum(losses.values())).backward()
        add(expected, narrow)
    # Detectron2's boxes, and so parts of its losses, are float32. RetinaNet sums over all anchors:
    # with some numbers of threads it differs by a part of float32's rounding unit.
    rtol = 2**-24 if kind == "retinanet" else 1e-8
    assert_gradients(step_gradients(model, hook, data), expected, rtol=rtol)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("supervision", ["soft", "both"])
def test_soft_gradients_are_full_plus_each_sub_networks(kind, supervision):
    from gradaug_det.core.slimming import at_width

    model, data = tiny_model(kind, double=True), [tiny_batch(6)]
    hook = GradAugHook(supervision=supervision, soft_weight=2.0, **SUBS)
    expected = {}
    for sub in [None, *sample_sub_networks(hook.options, 0)]:
        part = copy.deepcopy(model)
        network = GradAugDetector(part, hook.options)
        torch.manual_seed(1)
        with storage():
            losses, target = network.full_pass(data[0])
            if sub is not None:
                with at_width(network.slimmed, sub.width), isolated_rng(sub.seed):
                    losses = network.sub_network_pass(data[0], target, sub)
            sum(losses.values()).backward()
        add(expected, part)
    # RetinaNet's boxes are float32: their sums depend on how memory happens to be aligned.
    rtol = 1e-7 if kind == "retinanet" else 1e-10
    assert_gradients(step_gradients(model, hook, data), expected, rtol=rtol)


def test_soft_weight_warms_up():
    """The first of four steps has a quarter of the soft losses, and all of the labels'."""
    logged = []
    for warmup in (0, 4):
        hook = GradAugHook(supervision="both", soft_warmup=warmup, **SUBS)
        scalars = train(tiny_model(), hook, steps=1).storage.latest()
        logged.append({name: value for name, (value, _) in scalars.items() if "/" in name})
    assert any("/soft_" in name for name in logged[0])
    for name, value in logged[0].items():
        if not name.endswith("/loss"):
            share = 0.25 if "/soft_" in name else 1.0
            assert logged[1][name] == pytest.approx(share * value, rel=1e-5), name


# ---- exceptions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("supervision", ["soft", "labels", "both"])
def test_an_exception_in_a_sub_network_restores_everything(supervision):
    model = tiny_model()
    before = weights(model)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    res3 = model.backbone.bottom_up.res3
    calls = []

    def fail(*_):
        calls.append(1)
        if len(calls) == 3:  # the full pass, the first sub-network, the second
            raise ZeroDivisionError("inside")

    handle = res3.register_forward_hook(fail)
    hook = GradAugHook(supervision=supervision, **SUBS)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = make_trainer(model, hook, optimizer=optimizer)
    with pytest.raises(ZeroDivisionError):
        trainer.train(0, 3)
    handle.remove()
    assert {n: p.shape for n, p in model.named_parameters()} == shapes
    assert_equal(weights(model), before)  # no step was taken
    assert not optimizer.state
    assert "_write_metrics" not in vars(trainer)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    train(model, GradAugHook(supervision=supervision, **SUBS), steps=1)  # and it trains on
    assert not torch.equal(
        weights(model)["backbone.bottom_up.stem.conv1.weight"],
        before["backbone.bottom_up.stem.conv1.weight"],
    )


def test_a_non_finite_loss_is_named_and_not_stepped():
    model = tiny_model()
    before = weights(model)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.bias.zero_()
    hook = GradAugHook(supervision="soft", soft_weight=float("1e39"), **SUBS)  # overflows float32
    with pytest.raises(NonFiniteLossError, match=r"sub-network 0 \(width .*scale.*has the losses"):
        train(model, hook, steps=1)
    assert_equal(
        {k: v for k, v in weights(model).items() if "cls_score.bias" not in k},
        {k: v for k, v in before.items() if "cls_score.bias" not in k},
    )


# ---- other engines ------------------------------------------------------------------------------


class MainBranchTrainer(SimpleTrainer):
    """The order of Detectron2 main's SimpleTrainer: after_backward before _write_metrics."""

    def after_backward(self):
        for hook in self._hooks:
            getattr(hook, "after_backward", lambda: None)()

    def run_step(self):
        losses = self.model(next(self._data_loader_iter))
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.after_backward()
        self._write_metrics(losses, 0.0)
        self.optimizer.step()


class AsyncTrainer(MainBranchTrainer):
    """Main's ``async_write_metrics``: a step's metrics are written by another thread; here, late,
    when the next step has seen its batch."""

    def __init__(self, *args):
        super().__init__(*args)
        self.executor = ThreadPoolExecutor(max_workers=1)
        self.writing, self.may_write = self.executor.submit(int), threading.Event()

    def run_step(self):
        losses = self.model(next(self._data_loader_iter))
        self.may_write.set()
        self.writing.result()
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.after_backward()
        self.may_write = may_write = threading.Event()
        self.writing = self.executor.submit(
            lambda: (may_write.wait(), self._write_metrics(losses, 0.0))
        )
        self.optimizer.step()

    def after_train(self):
        super().after_train()
        self.may_write.set()
        self.writing.result()
        self.executor.shutdown()


class OwnLoop(SimpleTrainer):
    """A user's run_step that calls none of Detectron2's methods."""

    tell = False

    def run_step(self):
        losses = self.model(next(self._data_loader_iter))
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        if self.tell:
            self._hooks[0].run_sub_networks()
        self.optimizer.step()


def run_with(engine_class, options=SUBS, **attributes):
    model = tiny_model()
    engine = engine_class(model, batches(), torch.optim.SGD(model.parameters(), lr=0.01))
    vars(engine).update(attributes)
    engine.register_hooks([GradAugHook(**options)])
    torch.manual_seed(1)
    engine.train(0, 2)
    return weights(model)


@BOTH_KINDS
def test_the_same_step_wherever_the_engine_lets_the_hook_in(options):
    expected = run_with(SimpleTrainer, options)
    assert_equal(run_with(MainBranchTrainer, options), expected)
    assert_equal(run_with(AsyncTrainer, options), expected)
    assert_equal(run_with(OwnLoop, options, tell=True), expected)


def test_hooks_see_the_sum_of_all_passes_after_backward():
    seen = []

    class Reads(HookBase):
        def after_backward(self):
            seen.append(self.trainer.model.backbone.fpn_lateral4.weight.grad.clone())

    gradients = step_gradients(tiny_model(), GradAugHook(**SUBS), batches())
    model = tiny_model()
    engine = MainBranchTrainer(model, batches(), torch.optim.SGD(model.parameters(), lr=0.1))
    engine.register_hooks([Reads(), GradAugHook(**SUBS)])
    torch.manual_seed(1)
    engine.train(0, 1)
    assert torch.equal(seen[0], gradients["backbone.fpn_lateral4.weight"])


def test_scalars_of_sub_networks_are_forgotten_and_of_other_threads_kept():
    with EventStorage(7) as outer, AsideStorage() as aside:
        get_event_storage().put_scalar("ours", 1.0)
        with ThreadPoolExecutor() as executor:
            executor.submit(lambda: get_event_storage().put_scalars(late=2.0)).result()
        assert aside.iter == 7 and set(aside.latest()) == {"ours"}
        assert outer.latest() == {"late": (2.0, 7)}


def test_no_batch_outlives_its_step():
    """Neither the full pass's nor a sub-network's."""
    refs, alive = [], []

    class Looks(HookBase):
        def after_step(self):
            alive.extend(ref() is not None for ref in refs)

    model = tiny_model()
    model.register_forward_pre_hook(lambda _m, args: refs.append(weakref.ref(args[0][0]["image"])))
    engine = SimpleTrainer(model, batches(), torch.optim.SGD(model.parameters(), lr=0.1))
    engine.register_hooks([GradAugHook(**SUBS), Looks()])
    engine.train(0, 1)
    assert alive == [False] * 3


def test_pictures_are_the_full_networks_alone():
    model, drawn = tiny_model(), []
    original = model.visualize_training
    model.visualize_training = lambda *args: (drawn.append(1), original(*args))
    model.vis_period = model.roi_heads.mask_head.vis_period = 1
    model.input_format = "BGR"
    train(model, GradAugHook(supervision="labels", **SUBS), steps=2)
    assert len(drawn) == 2 and model.vis_period == model.roi_heads.mask_head.vis_period == 1


def test_an_engine_that_skips_the_hook_is_refused():
    with pytest.raises(GradAugError, match=r"OwnLoop.run_step stepped.*run_sub_networks\(\)"):
        run_with(OwnLoop)


class Bfloat16Trainer(SimpleTrainer):
    """bfloat16 autocast on the CPU; Detectron2's AMPTrainer insists on CUDA."""

    dtypes = ()

    def run_step(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = self.model(next(self._data_loader_iter))
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self._write_metrics(losses, 0.0)
        self.optimizer.step()


@needs_bfloat16_nms
@pytest.mark.parametrize("supervision", ["soft", "labels", "both"])
def test_sub_networks_run_in_the_full_passes_autocast(supervision):
    model = tiny_model()
    dtypes, outside = [], []
    model.backbone.bottom_up.res2.register_forward_hook(
        lambda _m, _i, out: dtypes.append(out.dtype)
    )
    model.backbone.fpn_lateral4.register_full_backward_hook(
        lambda *_: outside.append(isinstance(current_autocast("cpu"), nullcontext))
    )
    engine = Bfloat16Trainer(model, batches(), torch.optim.SGD(model.parameters(), lr=0.01))
    engine.register_hooks([GradAugHook(supervision=supervision, **SUBS)])
    engine.train(0, 2)
    assert dtypes == [dtypes[0]] * 6
    assert outside == [True] * 6  # backward passes run as the full network's does
    assert all(p.isfinite().all() for p in model.parameters())


@BOTH_KINDS
def test_losses_are_scaled_as_the_engine_scales_them(options):
    plain, scaled = run_with(SimpleTrainer, options), run_with(ScaledTrainer, options)
    for name, value in plain.items():
        assert torch.allclose(scaled[name], value, rtol=1e-4, atol=1e-6), name


def test_an_infinite_gradient_of_a_sub_network_skips_the_whole_step():
    model = tiny_model()
    before = weights(model)
    engine = ScaledTrainer(model, batches(), torch.optim.SGD(model.parameters(), lr=0.01))
    hook = GradAugHook(**SUBS)
    engine.register_hooks([hook])
    poison = iter([False, True])
    model.roi_heads.box_predictor.register_full_backward_hook(
        lambda _m, gi, _go: tuple(g * float("inf") for g in gi) if next(poison, False) else None
    )
    engine.train(0, 1)
    assert_equal(weights(model), before)
    assert engine.grad_scaler.get_scale() == 512.0


# ---- logging ------------------------------------------------------------------------------------


def test_scalars_and_lines(caplog):
    with caplog.at_level(logging.INFO, logger="detectron2.gradaug"):
        trainer = train(
            tiny_model(), GradAugHook(supervision="both", log_period=2, **SUBS), steps=4
        )
    latest = {k: v for k, (v, _) in trainer.storage.latest().items()}
    subs = sample_sub_networks(GradAugHook(**SUBS).options, 3)
    for sub in subs:
        prefix = f"gradaug/sub{sub.index}"
        assert latest[f"{prefix}/width"] == pytest.approx(sub.width)
        assert latest[f"{prefix}/scale"] == sub.transform.scale
        parts = [v for k, v in latest.items() if k.startswith((f"{prefix}/soft", f"{prefix}/lab"))]
        assert len(parts) == 10  # rpn (2), box (2) and mask, soft and from labels
        assert latest[f"{prefix}/loss"] == pytest.approx(sum(parts), rel=1e-5)
    lines = [r.message for r in caplog.records if r.message.startswith("GradAug iter")]
    assert [line.split(":")[0] for line in lines] == ["GradAug iter 1", "GradAug iter 3"]
    assert f"sub1 width 0.800 scale {subs[1].transform.scale:g}" in lines[-1]
    # Detectron2's console line shows what has "loss" in its name: one number a sub-network.
    shown = [k for k in latest if "gradaug" in k and "loss" in k]
    assert shown == ["gradaug/sub0/loss", "gradaug/sub1/loss"]


def test_scalars_are_gathered_when_the_engine_gathers_its_own():
    trainer = make_trainer(tiny_model("retinanet"), GradAugHook(**SUBS))
    trainer.gather_metric_period = 2  # an argument of Detectron2's main branch
    trainer.train(0, 3)
    history = trainer.storage.history("gradaug/sub0/loss").values()
    assert [iteration for _, iteration in history] == [1]


def test_supervision_that_a_detector_cannot_have():
    model = tiny_model()
    model.roi_heads.keypoint_on = True
    with pytest.raises(ConfigError, match="not implemented for keypoint heads; use"):
        train(model, GradAugHook(supervision="soft", **SUBS), steps=1)
    with pytest.raises(ConfigError, match=r"subnet_norm is 'batch'"):
        train(tiny_model(), GradAugHook(subnet_norm="batch", **SUBS), steps=1)


def test_channels_last_changes_the_memory_format_alone():
    trained = {}
    for channels_last in (False, True):
        model = tiny_model(double=True)
        train(model, GradAugHook(channels_last=channels_last, **SUBS), steps=1)
        weight = model.backbone.bottom_up.res3[0].conv2.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
        trained[channels_last] = weights(model)
    for name, tensor in trained[False].items():
        torch.testing.assert_close(trained[True][name], tensor, rtol=1e-6, atol=1e-7)
