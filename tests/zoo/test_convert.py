"""torchvision's ResNets in Detectron2: the same features from renamed weights."""

import pytest
import torch
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone

from gradaug_det.errors import GradAugError
from gradaug_det.zoo.convert import torchvision_to_detectron2
from tests.d2.helpers import tiny_cfg


@pytest.mark.parametrize("depth", [18, 50])
def test_features_agree(depth):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, f"resnet{depth}")()
    theirs(torch.randn(8, 3, 64, 64))  # running statistics of its own
    cfg = tiny_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth == 18 else 256
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    ours = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    ours.load_state_dict(torchvision_to_detectron2(theirs.state_dict()), strict=True)
    net, image = theirs.eval(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(image))))
        features = ours(image)
        for name, layer in zip(("res2", "res3", "res4", "res5"), range(1, 5), strict=True):
            x = net.get_submodule(f"layer{layer}")(x)
            assert torch.allclose(features[name], x, rtol=1e-4, atol=1e-5), name


def test_other_checkpoints_are_refused():
    with pytest.raises(GradAugError, match=r"not a torchvision ResNet's.*'conv1.weight'"):
        torchvision_to_detectron2(torchvision.models.vgg11().state_dict())
