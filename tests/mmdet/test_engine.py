"""What MMEngine does around a step: accumulation, clipping, averages, resume, logs."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

import json

import pytest
import torch
from mmengine.hooks import Hook

from tests.mmdet.helpers import (
    ALTERNATING,
    HOOK,
    PLAIN_SGD,
    assert_same,
    make_runner,
    parameters,
    tiny_model,
    train,
)


@pytest.mark.parametrize("hook", [HOOK | dict(supervision="both"), ALTERNATING])
def test_accumulated_gradients_are_the_mean_of_the_steps(hook, tmp_path):
    """Two iterations of one step; each iteration counts once, sub-networks included."""
    steps = []
    for iteration in (0, 1):
        model = tiny_model("retinanet", double=True)
        before = parameters(model)
        runner = make_runner(
            model,
            tmp_path / str(iteration),
            hook,
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
        hook,
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
        ALTERNATING,
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


@pytest.mark.parametrize(
    ("by_epoch", "hook"), [(True, HOOK | dict(supervision="both")), (False, ALTERNATING)]
)
def test_resumed_training_is_the_uninterrupted_one_bitwise(by_epoch, hook, tmp_path):
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
            hook,
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
    assert "GradAug iter 2: sub0 width " in text
    assert text.index(" loss: ") < text.index(" gradaug/sub0/loss: ")  # the detector's own first
    assert runner.message_hub.get_scalar("train/loss").data[0].size == 2
