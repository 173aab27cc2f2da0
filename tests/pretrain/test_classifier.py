"""Classification as Algorithm 1 sees it, and stochastic depth."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import resnet18

from gradaug_det.core.depth import at_depth
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.regularizer import gradaug_step
from gradaug_det.core.sampling import SubNetwork, sample_sub_networks
from gradaug_det.core.transforms import BatchTransform
from gradaug_det.pretrain.classifier import (
    Classifier,
    add_stochastic_depth,
    rotate,
    rotation_of,
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return resnet18(num_classes=5).double().train()


@pytest.fixture
def batch():
    return torch.randn(4, 3, 32, 32).double(), torch.tensor([0, 1, 2, 3])


def gradients(network):
    found = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    return found


def test_each_pass_has_its_own_view(network, batch):
    """The sum of the passes by hand: cross-entropy on view 0, KL to that on views 1 and 2."""
    images, labels = batch
    views = torch.stack([images, images.flip(-1), images.roll(3, 2)], dim=1)
    subs = [SubNetwork(i, 1.0, BatchTransform(), seed=i) for i in (0, 1)]
    gradaug_step(Classifier(network), (views, labels), subs)
    ours = gradients(network)
    logits = network(views[:, 0])
    F.cross_entropy(logits, labels).backward()
    target = logits.detach().softmax(1)
    for index in (1, 2):
        out = network(views[:, index])
        (target * (target.log() - out.log_softmax(1))).sum(1).mean().backward()
    for ours_, expected in zip(ours, gradients(network), strict=True):
        assert torch.allclose(ours_, expected, rtol=1e-9, atol=1e-12)


def test_depth_step_is_the_sum_of_hand_made_passes(network, batch):
    images, labels = batch
    sub = SubNetwork(0, 1.0, BatchTransform(0.75), seed=11, block_survival=0.0)
    statistics = {k: v.clone() for k, v in network.state_dict().items()}
    gradaug_step(Classifier(network), batch, [sub])
    ours = gradients(network)

    network.load_state_dict(statistics)
    logits = network(images)
    F.cross_entropy(logits, labels).backward()
    after = {k: v.clone() for k, v in network.named_buffers()}
    small = F.interpolate(images, (24, 24), mode="bilinear", antialias=True)
    with at_depth(network, 0.0, seed=11):
        out = network(small)
    target = logits.detach().softmax(1)
    (target * (target.log() - out.log_softmax(1))).sum(1).mean().backward()
    for ours_, expected in zip(ours, gradients(network), strict=True):
        assert torch.allclose(ours_, expected, rtol=1e-9, atol=1e-12)
    assert any(not torch.equal(v, after[k]) for k, v in network.named_buffers())
    network.load_state_dict(statistics)
    gradaug_step(Classifier(network), batch, [sub])
    for name, buffer in network.named_buffers():  # the full network's statistics alone
        assert torch.equal(buffer, after[name]), name


def test_soft_labels_and_label_smoothing(network, batch):
    images, labels = batch
    mixed = 0.7 * F.one_hot(labels, 5).double() + 0.3 * F.one_hot(labels.flip(0), 5).double()
    losses, logits = Classifier(network).full_pass((images, mixed))
    expected = -(mixed * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(losses["loss_cls"], expected)
    smooth, logits = Classifier(network, label_smoothing=0.1).full_pass(batch)
    target = 0.9 * F.one_hot(labels, 5) + 0.1 / 5
    assert torch.allclose(smooth["loss_cls"], -(target * logits.log_softmax(1)).sum(1).mean())


def test_rotations_are_a_function_of_the_sub_network():
    options = GradAugOptions(num_subnets=3, seed=1)
    angles = [0.0, 90.0, 180.0, 270.0]
    drawn = [
        rotation_of(sub, angles)
        for step in range(100)
        for sub in sample_sub_networks(options, step)
    ]
    again = [
        rotation_of(sub, angles)
        for step in range(100)
        for sub in sample_sub_networks(options, step)
    ]
    assert drawn == again
    counts = [drawn.count(angle) for angle in angles]
    assert min(counts) > 45
    image = torch.randn(1, 3, 8, 8)
    assert rotate(image, 0.0) is image
    assert torch.allclose(rotate(image, 90.0), torch.rot90(image, 1, (2, 3)), atol=1e-5)
    assert torch.allclose(rotate(image, 180.0), torch.rot90(image, 2, (2, 3)), atol=1e-5)


def test_the_sub_network_sees_the_rotated_and_scaled_batch(network, batch):
    seen = []
    network.conv1.register_forward_pre_hook(lambda _m, args: seen.append(args[0].detach()))
    sub = SubNetwork(0, 1.0, BatchTransform(0.75), seed=4)
    classifier = Classifier(network, rotations=(90.0,))
    loss = classifier.sub_network_pass(batch, torch.zeros(4, 5).double(), sub)
    assert loss["loss_kl"].isfinite()
    small = sub.transform.image(batch[0])
    assert torch.allclose(seen[0], torch.rot90(small, 1, (2, 3)), atol=1e-5)


def test_stochastic_depth_skips_branches_of_single_images_in_training_alone():
    torch.manual_seed(0)
    plain, deep = resnet18(num_classes=5), resnet18(num_classes=5)
    deep.load_state_dict(plain.state_dict())
    add_stochastic_depth(deep, 0.5)
    assert plain.state_dict().keys() == deep.state_dict().keys()
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain.eval()(image), deep.eval()(image))
    outputs = []
    deep.train()
    deep.layer4[1].bn2.register_forward_hook(lambda _m, _a, out: outputs.append(out.clone()))
    torch.manual_seed(1)
    for _ in range(50):
        deep(torch.randn(8, 3, 32, 32))
    dropped = torch.cat([(out.flatten(1) == 0).all(dim=1) for out in outputs]).float().mean()
    assert 0.4 < dropped < 0.6
    untouched = resnet18()
    add_stochastic_depth(untouched, 1.0)
    assert not untouched.layer4[1].bn2._forward_hooks
