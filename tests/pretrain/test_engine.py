"""The pretraining loop: every method runs, resume is exact, and what is left is a zoo file."""

import json
import re

import pytest
import torch

from gradaug_det.errors import ConfigError, GradAugError, NonFiniteLossError
from gradaug_det.pretrain.engine import Pretraining
from gradaug_det.zoo.backbone import read_backbone
from studies.mini_zoo.study import METHODS
from tests.pretrain.helpers import pretraining, tiny_recipe


@pytest.mark.parametrize("method", [*METHODS, "anywidth"])
def test_every_method_trains_and_leaves_a_zoo_file(method, tmp_path):
    recipe = tiny_recipe(method, "epochs=1")
    training = pretraining(recipe, tmp_path)
    before = {k: v.clone() for k, v in training.model.state_dict().items() if "num_" not in k}
    metrics = training.run()
    state, info = read_backbone(tmp_path / "backbone.safetensors")
    assert info.name == recipe.name
    smallest = {"gradaug": 0.9, "gradaug_views": 0.9, "gradaug_cutmix": 0.9, "anywidth": 0.5}
    assert info.min_width == smallest.get(method, 1.0)
    measured = {f"top1_w{width:g}" for width in recipe.gradaug.widths}
    assert metrics.keys() == {"top1", "top5", "loss"} | measured
    assert info.recipe["epochs"] == 1
    assert info.metrics == pytest.approx(metrics)
    assert 0 <= metrics["top1"] <= metrics["top5"] <= 100
    after = training.model.state_dict()
    assert state.keys() == before.keys()
    assert all(not torch.equal(before[k], after[k]) for k in before if k.endswith("conv1.weight"))
    for name, tensor in state.items():
        assert torch.allclose(tensor.float(), after[name].float(), rtol=1e-3, atol=1e-5), name


def interrupted_after(training, steps, monkeypatch):
    """Runs until ``steps`` steps are done, then as if the machine had stopped."""
    step = Pretraining.train_step

    def counted(self, number, *args):
        if number == steps:
            raise KeyboardInterrupt
        return step(self, number, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "train_step", counted)
        with pytest.raises(KeyboardInterrupt):
            training.run()


@pytest.mark.parametrize(
    ("method", "precision"),
    [("gradaug_cutmix", "32-true"), ("gradaug_views", "32-true"), ("anywidth", "bf16-mixed")],
)
def test_resume_is_bitwise_exact(method, precision, tmp_path, monkeypatch):
    """With everything that has a state: EMA, optimizer, schedule; dropout-like noise, mixing."""
    overrides = ("ema_decay=0.9", f"precision={precision}", "stochastic_depth=0.8")
    if method == "gradaug_views":
        overrides += ("mix=mixup",)
    if precision == "bf16-mixed":
        # torch 2.9 on CPUs leaves bfloat16 gradients of kernel taps that only ever meet padding
        # uninitialised: maps of one pixel, as these images have at 16 pixels, must not occur.
        overrides += ("data.size=64", "gradaug.full_share=0.25", "gradaug.widths=[0.5]")
    recipe = tiny_recipe(method, *overrides, "checkpoint_steps=3", "data.workers=1")
    pretraining(recipe, tmp_path / "whole").run()
    interrupted_after(pretraining(recipe, tmp_path / "parts"), 4, monkeypatch)
    assert not (tmp_path / "parts" / "backbone.safetensors").exists()
    interrupted_after(pretraining(recipe, tmp_path / "parts"), 8, monkeypatch)
    pretraining(recipe, tmp_path / "parts").run()
    whole, parts = (
        (tmp_path / name / "backbone.safetensors").read_bytes() for name in ("whole", "parts")
    )
    assert whole == parts
    contents = [json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("whole", "parts")]
    assert contents[0] == contents[1]
    names = {path.name for path in (tmp_path / "parts").iterdir()}
    assert names == {"backbone.safetensors", "metrics.json"}  # no state, nothing half-written


def test_a_finished_training_is_left_alone_and_another_recipe_is_refused(tmp_path, monkeypatch):
    recipe = tiny_recipe("baseline", "epochs=1")
    metrics = pretraining(recipe, tmp_path).run()
    with monkeypatch.context() as patch:
        patch.setattr(Pretraining, "train_step", lambda *_: 1 / 0)
        assert pretraining(recipe, tmp_path).run() == metrics
    with pytest.raises(GradAugError, match=r"another recipe \(seed: 3 there, 4 here\).*--out"):
        pretraining(tiny_recipe("baseline", "epochs=1", "seed=4"), tmp_path).run()
    other = tmp_path / "other"
    interrupted_after(pretraining(tiny_recipe("baseline"), other), 6, monkeypatch)
    with pytest.raises(GradAugError, match="another recipe"):
        pretraining(tiny_recipe("mixup"), other).run()


def test_a_loss_that_is_not_finite_stops_before_the_optimizer(tmp_path):
    training = pretraining(tiny_recipe("baseline"), tmp_path)
    with torch.no_grad():
        training.model.fc.bias[0] = float("nan")
    before = training.model.conv1.weight.clone()
    with pytest.raises(GradAugError, match=r"the loss is nan at step 0.*optim\.lr"):
        training.run()
    assert torch.equal(training.model.conv1.weight, before)


def test_float16_scales_losses_and_skips_a_step_with_infinite_gradients(tmp_path):
    training = pretraining(tiny_recipe("gradaug", "precision=16-mixed"), tmp_path)
    scaler = training.fabric.strategy.precision.scaler
    loader = iter(training.batches)
    images = torch.stack([training.images.train[i][0] for i in next(loader)[:4]])
    labels = torch.arange(4)  # few: float16 convolutions are slow on CPUs
    scale = scaler.get_scale()
    before = training.model.conv1.weight.clone()
    handle = training.model.fc.bias.register_hook(lambda grad: grad * float("inf"))
    training.train_step(0, images, labels)
    assert torch.equal(training.model.conv1.weight, before)
    assert scaler.get_scale() < scale
    handle.remove()
    # The scale is halved until the gradients fit; then a step is taken.
    for step in range(1, 20):
        training.train_step(step, images, labels)
        if not torch.equal(training.model.conv1.weight, before):
            break
    assert not torch.equal(training.model.conv1.weight, before)


def test_the_learning_rate_warms_up_and_ends_at_zero(tmp_path):
    training = pretraining(tiny_recipe("baseline", "optim.warmup_epochs=1"), tmp_path)
    rates = [training._lr_factor(step) for step in range(11)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[5] == 1.0
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[10] == pytest.approx(0.0)


def test_the_average_of_weights_is_what_is_saved_and_evaluated_on_the_way(tmp_path, caplog):
    caplog.set_level("INFO", "gradaug_det")
    overrides = ("ema_decay=0.5", "eval_epochs=1", "data.holdout=0.01")
    training = pretraining(tiny_recipe("baseline", *overrides), tmp_path)
    metrics = training.run()
    epochs = [text for text in caplog.messages if "epoch " in text]
    assert len(epochs) == 2
    assert re.search(r"epoch 1 of 2, loss \d+\.\d+, \d+\.\d\d % top-1", epochs[0])
    assert epochs[1].endswith(f"loss {epochs[1].split()[-1]}")  # the last epoch's is the result's
    assert caplog.messages[-1].endswith(f"{metrics['top1']:.2f} % top-1")
    # Looking at it changes nothing.
    other = pretraining(tiny_recipe("baseline", *overrides, "eval_epochs=0"), tmp_path / "other")
    assert other.run() == metrics
    assert other.recipe.same_training(training.recipe.as_dict())
    state, _ = read_backbone(tmp_path / "backbone.safetensors")
    average, last = training.ema.module.conv1.weight, training.model.conv1.weight
    assert torch.allclose(state["conv1.weight"], average, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(average, last, rtol=1e-3, atol=1e-5)


def test_a_batch_that_processes_cannot_share(tmp_path):
    training = pretraining(tiny_recipe("baseline"), tmp_path)

    class Three:
        world_size, global_rank = 3, 0

    with pytest.raises(ConfigError, match="batch_size must be a multiple of the 3 processes"):
        Pretraining(training.recipe, tmp_path, Three())


def test_a_gradient_that_is_not_finite_stops_before_the_optimizer(tmp_path):
    training = pretraining(tiny_recipe("baseline"), tmp_path)
    training.model.conv1.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = training.model.conv1.weight.clone()
    with pytest.raises(NonFiniteLossError, match=r"iteration 0: .* have a gradient that is not"):
        training.run()
    assert torch.equal(training.model.conv1.weight, before)


def test_channels_last_is_the_same_training_in_another_memory_format(tmp_path):
    images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    losses = {}
    for channels_last in (False, True):
        recipe = tiny_recipe("gradaug", "epochs=1", f"channels_last={channels_last}")
        assert ("channels_last" in recipe.as_dict()) == channels_last
        training = pretraining(recipe, tmp_path / str(channels_last))
        weight = training.model.layer2[0].conv1.weight
        losses[channels_last] = training.train_step(0, images, torch.arange(8))
        assert weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    torch.testing.assert_close(losses[True], losses[False], rtol=1e-4, atol=1e-5)
    metrics = training.run()
    state, info = read_backbone(tmp_path / "True" / "backbone.safetensors")
    assert info.metrics == pytest.approx(metrics) and info.recipe["channels_last"] is True
    assert all(tensor.is_contiguous() for tensor in state.values())
