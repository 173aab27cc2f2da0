"""What both hooks refuse, warn of and leave to a scaler, in real trainings of both frameworks."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

import logging
import signal

import pytest
import torch
import torch.distributed as dist
from fvcore.common.checkpoint import Checkpointer
from torch.nn.parallel import DistributedDataParallel

from gradaug_det.core.step import MOST_OVERFLOWS
from gradaug_det.d2 import GradAugHook as D2Hook
from gradaug_det.d2.resume import SaveOnTermination
from gradaug_det.errors import ConfigError, NonFiniteLossError
from gradaug_det.mmdet import GradAugHook as MMHook
from gradaug_det.mmdet.resume import ExactResumeHook
from tests.amp import cpu_scaler
from tests.d2 import helpers as d2
from tests.mmdet import helpers as mm
from tests.mmdet.test_amp import CpuAmpOptimWrapper  # noqa: F401 registers

OPTIONS = {"num_subnets": 1, "supervision": "labels"}
INFINITE = {"num_subnets": 1, "supervision": "labels", "labels_weight": float("1e39")}
"""The sub-network's losses overflow float32."""


def detectron2(tmp_path, *hooks, steps=1, scale=None, model=None, wrap=None):
    model = model or d2.tiny_model("retinanet")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    trainer = (d2.ScaledTrainer if scale else d2.LoadedTrainer)(
        wrap(model) if wrap else model, d2.batches(), optimizer
    )
    trainer.grad_scaler = cpu_scaler(enabled=bool(scale), init_scale=scale or 1.0)
    trainer.register_hooks(hooks)
    return model, trainer, lambda: trainer.train(0, steps), trainer.grad_scaler


def mmdetection(tmp_path, *hooks, steps=1, scale=None, model=None, wrap=None):
    model = model or mm.tiny_model("retinanet")
    optim = dict(type="CpuAmpOptimWrapper", scaler=dict(init_scale=scale)) if scale else None
    runner = mm.make_runner(
        wrap(model) if wrap else model,
        tmp_path,
        hooks=hooks,
        optim=optim,
        loop=dict(type="IterBasedTrainLoop", max_iters=steps),
    )

    class Late:
        def get_scale(self):
            return runner.optim_wrapper.loss_scaler.get_scale()

    return model, runner, runner.train, Late()


FRAMEWORKS = pytest.mark.parametrize(
    ("made", "hook"), [(detectron2, D2Hook), (mmdetection, MMHook)], ids=["detectron2", "mmdet"]
)


def copied(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(one, two):
    return all(torch.equal(one[key], two[key]) for key in two)


def attached(model, owner):
    hooks = [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    return hooks, [n for n in ("_write_metrics", "train_step", "backward") if n in vars(owner)]


def warnings_of(made, tmp_path, caplog, hook, about, model):
    """Returns what a training says at its start."""
    _, owner, train, _ = made(tmp_path, hook, steps=0, model=model)
    if made is mmdetection:
        owner.logger.addHandler(caplog.handler)
        owner.logger.setLevel(logging.WARNING)
    train()
    return [r.getMessage() for r in caplog.records if about in r.getMessage()]


# ---- registered twice ---------------------------------------------------------------------------


@FRAMEWORKS
@pytest.mark.parametrize("second", ["another", "the same", "a subclass"])
def test_registered_twice_is_one_error(made, hook, second, tmp_path):
    one = hook(**OPTIONS)
    two = {
        "another": lambda: hook(num_subnets=2),
        "the same": lambda: one,
        "a subclass": lambda: type("OwnHook", (hook,), {})(**OPTIONS),
    }[second]()
    model, owner, train, _ = made(tmp_path, one, two)
    before = copied(model)
    with pytest.raises(ConfigError, match="GradAugHook is registered 2 times"):
        train()
    assert same(copied(model), before) and attached(model, owner) == ([], [])
    # ... and one of them alone trains, with the same model.
    made(tmp_path, one, model=model)[2]()
    assert not same(copied(model), before)


def test_saving_twice_is_one_error(tmp_path):
    """Two that listen to SIGTERM would leave its handler changed."""
    before = signal.getsignal(signal.SIGTERM)
    model = torch.nn.Linear(1, 1)
    saving = [SaveOnTermination(Checkpointer(model)) for _ in range(2)]
    for kind, train in (
        ("SaveOnTermination", detectron2(tmp_path, *saving)[2]),
        ("ExactResumeHook", mmdetection(tmp_path, ExactResumeHook(), ExactResumeHook())[2]),
    ):
        with pytest.raises(ConfigError, match=f"{kind} is registered 2 times, but SIGTERM saves"):
            train()
    assert signal.getsignal(signal.SIGTERM) is before


@FRAMEWORKS
def test_a_hook_with_nothing_to_do_is_no_second_one(made, hook, tmp_path):
    made(tmp_path, hook(**OPTIONS), hook(num_subnets=0))[2]()


# ---- wrappers -----------------------------------------------------------------------------------


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@FRAMEWORKS
def test_a_static_graph_is_refused(made, hook, one_process, tmp_path):
    from mmengine.model import MMDistributedDataParallel

    kind = DistributedDataParallel if made is detectron2 else MMDistributedDataParallel
    train = made(tmp_path, hook(**OPTIONS), wrap=lambda m: kind(m, static_graph=True))[2]
    with pytest.raises(ConfigError, match="static_graph of DistributedDataParallel must be False"):
        train()
    made(tmp_path, hook(**OPTIONS), wrap=lambda m: kind(m, find_unused_parameters=True))[2]()


@FRAMEWORKS
@pytest.mark.parametrize("part", ["backbone", ""])
def test_a_compiled_model_is_warned_of_once(made, hook, part, tmp_path, caplog):
    model = made(tmp_path)[0]
    model.get_submodule(part).compile(backend="eager")
    said = warnings_of(made, tmp_path, caplog, hook(**OPTIONS), "torch.compile", model)
    assert len(said) == 1 and (part or type(model).__name__) in said[0]


@FRAMEWORKS
def test_cudnn_trying_algorithms_for_every_width_is_warned_of(made, hook, tmp_path, caplog):
    model = made(tmp_path)[0]

    def said(**options):
        caplog.clear()
        return warnings_of(made, tmp_path, caplog, hook(**options), "cudnn.benchmark", model)

    assert not said(**OPTIONS)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        (warning,) = said(**OPTIONS, min_width=0.7)
        assert "any width from 0.7 to 1" in warning and "Set `widths` or `divisor`" in warning
        few = ({"widths": [0.9]}, {"divisor": 16}, {"min_width": 1.0}, {"num_subnets": 0})
        for options in (*({**OPTIONS, **one} for one in few), {"passes": "alternating"}):
            assert not said(**options), options


# ---- float16's scaler ---------------------------------------------------------------------------


@FRAMEWORKS
def test_an_overflow_in_a_forward_pass_is_left_to_the_scaler(made, hook, tmp_path):
    model, _, train, scaler = made(tmp_path, hook(**INFINITE), scale=1024.0, steps=2)
    before = copied(model)
    train()
    assert same(copied(model), before) and scaler.get_scale() == 256.0


@FRAMEWORKS
def test_many_overflows_in_a_row_are_an_error(made, hook, tmp_path):
    _, _, train, scaler = made(tmp_path, hook(**INFINITE), scale=2.0**20, steps=MOST_OVERFLOWS)
    with pytest.raises(NonFiniteLossError, match=f"for the {MOST_OVERFLOWS}th time in a row"):
        train()
    assert scaler.get_scale() == 2.0 ** (20 - MOST_OVERFLOWS + 1)


@FRAMEWORKS
def test_skip_leaves_out_the_sub_network_alone_under_a_scaler_too(made, hook, tmp_path):
    model, _, train, scaler = made(tmp_path, hook(**INFINITE, nonfinite="skip"), scale=1024.0)
    before = copied(model)
    train()
    assert not same(copied(model), before) and scaler.get_scale() == 1024.0
