"""Algorithm 1: what it adds to the gradients, and what it leaves alone."""

import copy
import re

import pytest
import torch
from torchvision.models import resnet18

from gradaug_det.core.losses import class_kl
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.regularizer import gradaug_step, sub_network_passes
from gradaug_det.core.sampling import sample_sub_networks
from gradaug_det.core.slimming import at_width, slim_plan
from gradaug_det.errors import NonFiniteLossError
from gradaug_det.pretrain.classifier import Classifier

OPTIONS = GradAugOptions(3, 0.7, (1.0, 0.75, 0.5), 0.5, seed=4)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return resnet18(num_classes=4).double().train()


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 64, 64, generator=g).double(), torch.tensor([0, 1, 2, 3])


def gradients(network):
    return {n: p.grad.clone() for n, p in network.named_parameters()}


def test_gradients_are_the_sum_of_passes_computed_apart(network, batch):
    images, labels = batch
    subs = sample_sub_networks(OPTIONS, 5)
    apart = copy.deepcopy(network)
    logits = apart(images)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    expected = gradients(apart)
    for sub in subs:
        narrow = copy.deepcopy(network)
        with at_width(narrow, sub.width, "batch"):
            class_kl(narrow(sub.transform.image(images)), logits).backward()
        for name, gradient in gradients(narrow).items():
            expected[name] += gradient
    gradaug_step(Classifier(network), batch, subs)
    for name, gradient in gradients(network).items():
        scale = expected[name].abs().max()
        assert (gradient - expected[name]).abs().max() <= 1e-12 * scale, name
    for (name, ours), theirs in zip(network.named_buffers(), apart.buffers(), strict=True):
        assert torch.equal(ours, theirs), name  # statistics of the full pass alone


def test_no_sub_networks_is_plain_training(network, batch):
    plain = copy.deepcopy(network)
    torch.nn.functional.cross_entropy(plain(batch[0]), batch[1]).backward()
    losses, results = gradaug_step(Classifier(network), batch, [])
    assert results == []
    assert losses["loss_cls"].requires_grad
    for ours, theirs in zip(network.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_backward_is_the_callers(network, batch):
    seen = []
    gradaug_step(
        Classifier(network),
        batch,
        sample_sub_networks(OPTIONS, 0),
        lambda loss: (seen.append(loss.item()), (2 * loss).backward()),
    )
    assert len(seen) == 4
    doubled = gradients(network)
    network.zero_grad()
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.fill_(float("var" in name))
    gradaug_step(Classifier(network), batch, sample_sub_networks(OPTIONS, 0))
    for name, gradient in gradients(network).items():
        assert torch.allclose(doubled[name], 2 * gradient, rtol=1e-10), name


def test_an_exception_leaves_the_full_network(network, batch):
    full = {n: p.shape for n, p in network.named_parameters()}

    class Failing(Classifier):
        def sub_network_pass(self, batch, soft_target, sub):
            if sub.index == 1:
                assert self.backbone.conv1.weight.shape[0] < 64
                raise ZeroDivisionError
            return super().sub_network_pass(batch, soft_target, sub)

    with pytest.raises(ZeroDivisionError):
        gradaug_step(Failing(network), batch, sample_sub_networks(OPTIONS, 0))
    assert {n: p.shape for n, p in network.named_parameters()} == full
    assert all(m.training for m in network.modules())


@pytest.mark.parametrize("nonfinite, calls", [("raise", 3), ("note", 3), ("skip", 0)])
def test_non_finite_losses_are_named(network, batch, nonfinite, calls):
    class Infinite(Classifier):
        def sub_network_pass(self, batch, soft_target, sub):
            losses = super().sub_network_pass(batch, soft_target, sub)
            return {**losses, "loss_bad": losses["loss_kl"] * float("inf")}

    seen, subs = [], sample_sub_networks(OPTIONS, 0)
    args = Infinite(network), batch, network(batch[0]).detach(), subs, seen.append
    message = r"sub-network 0 \(width 0\.\d+.*'loss_bad': inf"
    if nonfinite == "raise":
        with pytest.raises(NonFiniteLossError, match=message):
            sub_network_passes(*args)
    else:
        results = sub_network_passes(*args, nonfinite=nonfinite)
        assert all(str(sub.index) in str(r.problem) for sub, r in zip(subs, results, strict=True))
        assert re.search(message, str(results[0].problem))
    assert len(seen) == calls


def test_checkpointed_activations_give_the_same_gradients(network, batch):
    """Recomputation happens during backward: it must see the sub-network, not the full one."""
    from torch.utils.checkpoint import checkpoint

    plain = copy.deepcopy(network).eval()
    network.eval()
    slim_plan(network)
    layer3 = network.layer3.forward
    network.layer3.forward = lambda x: checkpoint(layer3, x, use_reentrant=False)
    for model in (plain, network):
        gradaug_step(Classifier(model, "frozen"), batch, sample_sub_networks(OPTIONS, 2))
    for (name, ours), theirs in zip(network.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-10, atol=1e-12), name


def test_it_learns_and_sub_networks_learn_with_it():
    """A few steps on one batch: the full network fits it, and so does the narrowest."""
    torch.manual_seed(0)
    model = resnet18(num_classes=4).train()
    classifier, optimizer = Classifier(model), torch.optim.Adam(model.parameters(), 1e-3)
    batch = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    options = GradAugOptions(2, 0.5, (1.0,), seed=0)
    history = []
    for step in range(15):
        optimizer.zero_grad()
        losses, results = gradaug_step(classifier, batch, sample_sub_networks(options, step))
        optimizer.step()
        history.append((losses["loss_cls"].item(), results[-1].total.item()))
    assert history[-1][0] < 0.2 * history[0][0]
    with torch.no_grad(), at_width(model, 0.5, "batch"):
        assert (model(batch[0]).argmax(1) == batch[1]).float().mean() >= 0.75
