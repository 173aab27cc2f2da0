"""Sub-networks by random depth, on the real blocks of all four sources of ResNets."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from mmdet.models.backbones import ResNet
from torch.utils._pytree import tree_flatten

from gradaug_det.core.depth import at_depth, residual_blocks, survival_probabilities
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.sampling import sample_sub_networks
from gradaug_det.errors import ConfigError, UnslimmableError
from tests.d2.helpers import tiny_cfg


def detectron2_resnet18():
    cfg = tiny_cfg()
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    return build_resnet_backbone(cfg, ShapeSpec(channels=3))


RESNETS = {
    "torchvision": lambda: torchvision.models.resnet18(num_classes=10),
    "timm": lambda: timm.create_model("resnet18", num_classes=10),
    "mmdet": lambda: ResNet(18),
    "detectron2": detectron2_resnet18,
}


@pytest.mark.parametrize("source", RESNETS)
def test_every_framework_has_eight_blocks(source):
    assert len(residual_blocks(RESNETS[source]())) == 8


@pytest.mark.parametrize("source", RESNETS)
def test_all_branches_skipped_leaves_the_shortcuts(source):
    torch.manual_seed(0)
    net, image = RESNETS[source](), torch.randn(2, 3, 32, 32)
    net.eval()  # MMDetection's returns None
    for tensor in [*net.parameters(), *net.buffers()]:
        if tensor.dim() == 1:  # norms: some frameworks start residual branches at zero
            tensor.data.uniform_(0.5, 1.5)
    name = "downsample" if source != "detectron2" else "shortcut"
    with torch.no_grad():
        full = net(image)
        stem = torch.relu(torch.randn(2, 64, 8, 8))
        x = stem
        with at_depth(net, 0.0, seed=4):
            # The first block is always kept, the last never; find out about those between.
            blocks = residual_blocks(net)
            assert "forward" not in vars(blocks[0]) and "forward" in vars(blocks[-1])
            for block in blocks:
                shortcut = getattr(block, name)
                short = F.relu(x if shortcut is None else shortcut(x))
                skipped = "forward" in vars(block)
                x = block(x)
                assert torch.equal(x, short) == skipped
        again = net(image)
    for a, b in zip(tree_flatten(full)[0], tree_flatten(again)[0], strict=True):
        assert torch.equal(a, b)  # nothing is left behind


def test_probabilities_decay_linearly():
    assert survival_probabilities(5, 0.8) == pytest.approx([1, 0.95, 0.9, 0.85, 0.8])
    assert survival_probabilities(1, 0.8) == [1]
    net = torchvision.models.resnet18()
    counts = torch.zeros(8)
    for seed in range(400):
        with at_depth(net, 0.5, seed):
            counts += torch.tensor([float("forward" not in vars(b)) for b in residual_blocks(net)])
    assert counts[0] == 400
    assert torch.allclose(counts / 400, torch.tensor(survival_probabilities(8, 0.5)), atol=0.08)


def test_an_exception_leaves_the_whole_network():
    net = torchvision.models.resnet18()
    with pytest.raises(ZeroDivisionError):
        with at_depth(net, 0.0, seed=0):
            raise ZeroDivisionError
    assert not any("forward" in vars(block) for block in residual_blocks(net))


def test_errors_say_what_is_wrong():
    with pytest.raises(UnslimmableError, match="VGG has no residual blocks"):
        with at_depth(torchvision.models.vgg11(), 0.5, seed=0):
            pass
    with pytest.raises(ConfigError, match=r"block_survival must be a number in \[0, 1\], got 2"):
        with at_depth(torchvision.models.resnet18(), 2, seed=0):
            pass


def test_sampling_hands_it_on_and_widths_stay_as_they_were():
    plain, deep = GradAugOptions(seed=3), GradAugOptions(seed=3, block_survival=0.8)
    assert {sub.block_survival for sub in sample_sub_networks(plain, 7)} == {1.0}
    for one, two in zip(sample_sub_networks(plain, 7), sample_sub_networks(deep, 7), strict=True):
        assert two.block_survival == 0.8
        assert (one.width, one.transform, one.seed) == (two.width, two.transform, two.seed)
