"""MMDetection's ResNets under their slimmable names."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

import pytest
import torch
from mmdet.models.backbones import ResNet, ResNetV1d, ResNeXt
from mmdet.registry import MODELS
from torch import nn

from gradaug_det.core.slimming import at_width, slim_plan
from gradaug_det.errors import UnslimmableError
from gradaug_det.mmdet.backbone import slimmed_part
from tests.mmdet.helpers import assert_same, tiny_model

PLAIN = {"ResNet": ResNet, "ResNetV1d": ResNetV1d, "ResNeXt": ResNeXt}


def build(kind="ResNet", depth=18, **kwargs):
    torch.manual_seed(0)
    return MODELS.build(dict(type=f"Slimmable{kind}", depth=depth, **kwargs))


@pytest.mark.parametrize(
    ("kind", "depth", "kwargs"),
    [
        ("ResNet", 18, {}),
        ("ResNet", 34, {"with_cp": True}),
        ("ResNet", 50, {"style": "caffe", "frozen_stages": 1}),
        ("ResNet", 101, {"norm_cfg": {"type": "GN", "num_groups": 32}}),
        ("ResNet", 152, {}),
        ("ResNetV1d", 50, {}),
        ("ResNeXt", 50, {"groups": 32, "base_width": 4}),
    ],
)
def test_same_names_fewer_channels(kind, depth, kwargs):
    slimmable = build(kind, depth, **kwargs)
    plain = PLAIN[kind](depth=depth, **kwargs)
    plain.load_state_dict(slimmable.state_dict(), strict=True)
    slimmable.load_state_dict(plain.state_dict(), strict=True)
    image = torch.randn(1, 3, 64, 64)
    for model in (slimmable, plain):
        model.train()
    full = plain(image)
    assert all(torch.equal(a, b) for a, b in zip(slimmable(image), full, strict=True))
    with at_width(slimmable, 0.5):
        narrow = slimmable(image)
    for a, b in zip(narrow, full, strict=True):
        assert a.shape == b.shape
        kept = round(b.shape[1] * 0.5)
        assert a[:, :kept].abs().sum() > 0 and not a[:, kept:].any()


def test_widths_of_groups_and_group_norm_are_whole_groups():
    plan = slim_plan(build("ResNeXt", 50, groups=32, base_width=4))
    assert plan.tensor_shape("layer1.0.conv2.weight", (128, 4, 3, 3), 0.9) == (29 * 4, 4, 3, 3)
    gn = build(norm_cfg=dict(type="GN", num_groups=32))
    assert slim_plan(gn).tensor_shape("conv1.weight", (64, 3, 7, 7), 0.9)[0] % 2 == 0


def test_deformable_convolution_is_named():
    with pytest.raises(UnslimmableError, match=r"layer2\.0\.conv2"):
        build(depth=50, dcn=dict(type="DCNv2", deform_groups=1), stage_with_dcn=(False, True) * 2)


def test_plugin_is_named():
    plugin = dict(
        cfg=dict(type="GeneralizedAttention", attention_type="0010", num_heads=8),
        stages=(False, False, True, True),
        position="after_conv2",
    )
    with pytest.raises(UnslimmableError, match=r"layer3\.0\.gen_attention"):
        build(depth=50, plugins=[plugin])


@pytest.mark.parametrize("norm_eval", [True, False])
def test_auto_norm_follows_norm_eval_and_keeps_statistics(norm_eval):
    backbone = build(norm_eval=norm_eval)
    backbone.train()  # MMDetection's returns nothing
    before = {k: v.clone() for k, v in backbone.named_buffers()}
    images = torch.randn(2, 3, 64, 64)
    policy = "frozen" if norm_eval else "batch"
    with at_width(backbone, 0.9, "auto"):
        auto = backbone(images)
    with at_width(backbone, 0.9, policy):
        named = backbone(images)
    assert all(torch.equal(a, b) for a, b in zip(auto, named, strict=True))
    assert_same(before, dict(backbone.named_buffers()))


def test_frozen_stages_get_no_gradient():
    backbone = build(frozen_stages=2)
    backbone.train()
    with at_width(backbone, 0.8):
        sum(x.sum() for x in backbone(torch.randn(1, 3, 64, 64))).backward()
    assert backbone.layer2[0].conv1.weight.grad is None
    assert backbone.layer3[0].conv1.weight.grad.abs().sum() > 0


def test_activation_checkpointing_recomputes_the_sub_network():
    images, grads = torch.randn(2, 3, 64, 64), []
    for with_cp in (False, True):
        backbone = build(with_cp=with_cp).double()
        backbone.train()
        with at_width(backbone, 0.8):
            sum(x.square().mean() for x in backbone(images.double())).backward()
        grads.append({n: p.grad for n, p in backbone.named_parameters()})
    for name in grads[0]:
        assert torch.allclose(grads[0][name], grads[1][name], rtol=1e-12, atol=1e-15)


def test_any_detector_whose_backbone_can_be_followed():
    plain = tiny_model("retinanet", backbone="ResNet")
    assert slimmed_part(plain) is plain.backbone
    with pytest.raises(UnslimmableError, match="no attribute 'backbone'"):
        slimmed_part(nn.Linear(1, 1))
    swin = nn.Module()
    swin.backbone = MODELS.build(
        dict(type="SwinTransformer", embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
    )
    with pytest.raises(UnslimmableError, match="cannot slim layer"):
        slimmed_part(swin)


def test_mmcv_sync_batch_norm_is_refused():
    from mmcv.ops import SyncBatchNorm

    model = tiny_model("retinanet")
    layer = model.backbone.layer2[0]
    # MMCV's layer can only be built in a distributed training; its class is what counts.
    layer.bn1 = SyncBatchNorm.__new__(SyncBatchNorm)
    nn.Module.__init__(layer.bn1)
    with pytest.raises(UnslimmableError, match=r"layer2\.0\.bn1.*SyncBN"):
        slimmed_part(model)
