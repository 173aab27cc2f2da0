"""The authors' loop, told again, computes what ours computes."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import get_model

from benchmarks.training.authors import authors_passes, interpolate, make_slimmable
from gradaug_det.core.regularizer import gradaug_step
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.core.transforms import BatchTransform
from gradaug_det.errors import UnslimmableError
from gradaug_det.pretrain.classifier import Classifier

SUBS = [
    SubNetwork(0, 0.9375, BatchTransform(0.75)),
    SubNetwork(1, 0.95, BatchTransform(1.0)),
    SubNetwork(2, 0.9, BatchTransform(0.5)),
]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_gradients_and_statistics_are_those_of_gradaug_step(name):
    torch.manual_seed(0)
    ours = get_model(name, num_classes=10).double().train()
    theirs = make_slimmable(copy.deepcopy(ours))
    images, labels = torch.randn(3, 3, 64, 64, dtype=torch.double), torch.arange(3)
    gradaug_step(Classifier(ours), (images, labels), SUBS)
    # Ours are resized with antialiasing; what is compared here is the passes on the same images.
    authors_passes(theirs, images, labels, SUBS, lambda x, sub: sub.transform.image(x))
    found = dict(theirs.named_parameters())
    expected = dict(ours.named_parameters())
    assert found.keys() == expected.keys()
    for key, parameter in expected.items():
        torch.testing.assert_close(found[key].grad, parameter.grad, rtol=1e-5, atol=1e-10)
    for key, buffer in theirs.named_buffers():
        torch.testing.assert_close(buffer, ours.get_buffer(key))
    assert all(layer.width == 1 for layer in theirs.modules() if hasattr(layer, "width"))


def test_a_resized_batch_has_our_size():
    images = torch.rand(2, 3, 50, 70)
    assert interpolate(images, SUBS[0]).shape == SUBS[0].transform.image(images).shape


def test_a_network_with_other_layers_is_refused():
    model = get_model("resnext50_32x4d")
    with pytest.raises(UnslimmableError, match=r"layer1\.0\.conv2"):
        make_slimmable(model)
    assert isinstance(model.fc, nn.Linear)
