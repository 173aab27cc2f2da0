"""Mixed precision: MMEngine's AmpOptimWrapper, with what of it a CPU can run."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

from importlib import import_module

import pytest
import torch
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from gradaug_det.core import losses as soft
from tests.amp import cpu_scaler
from tests.mmdet.helpers import ALTERNATING, make_runner, parameters, tiny_model

amp = import_module("mmengine.optim.optimizer.amp_optimizer_wrapper")
HOOK = dict(num_subnets=2, min_width=0.7, flip_prob=0.5, seed=5, supervision="both")


@OPTIM_WRAPPERS.register_module(force=True)
class CpuAmpOptimWrapper(AmpOptimWrapper):
    """MMEngine's own, with PyTorch's GradScaler for the CPU: it refuses to be built without one
    for a GPU. Every other line that runs is MMEngine's."""

    def __init__(self, scaler=None, **kwargs):
        available, amp.is_cuda_available = amp.is_cuda_available, lambda: True
        own, amp.GradScaler = amp.GradScaler, cpu_scaler
        try:
            super().__init__(dtype="bfloat16", loss_scale=scaler or dict(enabled=False), **kwargs)
        finally:
            amp.is_cuda_available, amp.GradScaler = available, own


def train(tmp_path, kind="retinanet", iterations=2, hook=HOOK, **optim):
    model = tiny_model(kind)
    runner = make_runner(
        model,
        tmp_path,
        hook,
        optim=optim,
        loop=dict(type="IterBasedTrainLoop", max_iters=iterations),
    )
    runner.train()
    return runner


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "atss"])  # MMCV's CPU NMS is float32 only
def test_bfloat16_trains_near_float32_and_sub_networks_use_it(kind, tmp_path, monkeypatch):
    dtypes = []
    seen = soft.quality_focal

    def note(logits, *args, **kwargs):
        dtypes.append(logits.dtype)
        return seen(logits, *args, **kwargs)

    monkeypatch.setattr(soft, "quality_focal", note)
    full = train(tmp_path / "a", kind, 1)
    half = train(tmp_path / "b", kind, 1, type="CpuAmpOptimWrapper")
    assert dtypes == [torch.float32] * 2 + [torch.bfloat16] * 2
    for name in ("loss", "gradaug/sub0/loss", "gradaug/sub1/loss"):
        a, b = (r.message_hub.get_scalar(f"train/{name}").current() for r in (full, half))
        assert b == pytest.approx(a, rel=0.1)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())


@pytest.mark.parametrize("hook", [HOOK, ALTERNATING])
def test_scaled_losses_give_the_same_step(hook, tmp_path):
    """A scale that is a power of two changes no bit of what it is divided out of again."""
    clip = dict(clip_grad=dict(max_norm=0.5), accumulative_counts=2)
    clip |= dict(type="CpuAmpOptimWrapper")
    plain = train(tmp_path / "a", hook=hook, **clip)
    scaled = train(tmp_path / "b", hook=hook, scaler=dict(init_scale=2.0**8), **clip)
    assert scaled.optim_wrapper.loss_scaler.get_scale() == 2.0**8
    a, b = parameters(plain.model), parameters(scaled.model)
    for name in a:
        assert torch.allclose(a[name], b[name], rtol=1e-6, atol=1e-8), name
    norms = [r.message_hub.get_scalar("train/grad_norm").current() for r in (plain, scaled)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_an_overflow_in_a_sub_network_alone_skips_the_step(tmp_path):
    """float16's rule, with float32's range: the full pass's gradients stay finite."""
    before = parameters(tiny_model("retinanet"))
    scaler = dict(init_scale=1e34)
    for weight, skipped in ((1.0, False), (1e6, True)):
        runner = train(
            tmp_path / str(weight),
            iterations=1,
            hook=HOOK | dict(labels_weight=weight),
            type="CpuAmpOptimWrapper",
            scaler=scaler,
        )
        after = parameters(runner.model)
        assert all(torch.equal(before[n], after[n]) for n in before) == skipped
        assert runner.optim_wrapper.loss_scaler.get_scale() == pytest.approx(
            5e33 if skipped else 1e34
        )
        assert runner.optim_wrapper.inner_count == 1
