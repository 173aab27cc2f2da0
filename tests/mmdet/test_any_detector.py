"""``labels`` trains whatever MMDetection trains: transformers, heads that count, norms in necks."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

import copy

import pytest
import torch
from mmdet.models.dense_heads import RetinaHead
from mmengine.hub import get_config

from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.regularizer import sub_network_passes
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.core.transforms import BatchTransform
from gradaug_det.errors import ConfigError
from gradaug_det.mmdet.batch import make_batch
from gradaug_det.mmdet.detector import GradAugDetector
from tests.mmdet.helpers import (
    BASES,
    assert_same,
    collated,
    make_runner,
    parameters,
    tiny_items,
    tiny_model,
    tiny_model_cfg,
)

DIM = 32


def tiny_detr():
    cfg = copy.deepcopy(get_config(f"mmdet::{BASES['detr']}").model)
    cfg.num_queries = 10
    cfg.backbone.update(
        type="SlimmableResNet", depth=18, frozen_stages=-1, init_cfg=None, norm_eval=True
    )
    cfg.backbone.norm_cfg.requires_grad = True
    cfg.neck.update(in_channels=[512], out_channels=DIM)
    for part in (cfg.encoder, cfg.decoder):
        part.num_layers = 1
        for name, layer in part.layer_cfg.items():
            layer.embed_dims = DIM
            if "attn" in name:
                layer.update(num_heads=4)
            else:
                layer.feedforward_channels = 64
    cfg.positional_encoding.num_feats = DIM // 2
    cfg.bbox_head.update(embed_dims=DIM, num_classes=3)
    return tiny_model(cfg=cfg)


def test_detr_with_labels(tmp_path):
    model = tiny_detr()
    before = parameters(model)
    runner = make_runner(
        model, tmp_path, dict(num_subnets=2, supervision="labels", flip_prob=0.5, seed=5)
    )
    runner.train()
    changed = [n for n, p in parameters(model).items() if not torch.equal(before[n], p)]
    assert len(changed) > 0.9 * len(before)
    for name in ("cls", "bbox", "iou"):
        assert runner.message_hub.get_scalar(f"train/gradaug/sub1/labels_{name}").current() > 0


def test_detr_has_no_soft_targets_and_the_error_names_labels(tmp_path):
    runner = make_runner(tiny_detr(), tmp_path, dict(supervision="soft"))
    with pytest.raises(ConfigError, match="not implemented for DETR; use 'labels'"):
        runner.train()


class CountingHead(RetinaHead):
    """A head with a memory, as Seesaw loss, TOOD or PAA have."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.register_buffer("seen", torch.zeros(3))
        self.steps, self.mean = 0, 1.0

    def loss(self, x, samples):
        with torch.no_grad():
            self.seen += 1
        self.steps, self.mean = self.steps + 1, 0.9 * self.mean
        losses = super().loss(x, samples)
        # The memory is read, and autograd keeps what was read.
        losses["loss_cls"] = [loss * self.seen.sum() / 3 for loss in losses["loss_cls"]]
        return losses


def test_heads_remember_the_full_pass_alone():
    model = tiny_model("retinanet")
    model.bbox_head.__class__ = CountingHead
    model.bbox_head.register_buffer("seen", torch.zeros(3))
    model.bbox_head.steps, model.bbox_head.mean = 0, 1.0
    network = GradAugDetector(model, GradAugOptions(supervision="labels"))
    data = model.data_preprocessor(collated(tiny_items()), True)
    batch = make_batch(data["inputs"], data["data_samples"])
    losses, calls = network.full_pass(batch)
    memory = model.bbox_head.seen
    subs = [SubNetwork(i, 0.8, BatchTransform(0.714)) for i in range(2)]
    results = sub_network_passes(network, batch, calls, subs)
    assert model.bbox_head.seen is memory and memory.tolist() == [1, 1, 1]
    assert model.bbox_head.steps == 1 and model.bbox_head.mean == 0.9
    assert all(result.total.isfinite() for result in results)
    # ... while a sub-network's own pass sees what it has counted itself.
    assert results[0].losses["labels_cls"] > 1.5 * losses["loss_cls"]


@pytest.mark.parametrize("supervision", ["labels", "soft"])
def test_a_batch_norm_neck_records_the_full_pass_alone(supervision):
    cfg = tiny_model_cfg("mask_rcnn")
    cfg.neck.norm_cfg = dict(type="BN")
    model = tiny_model(cfg=cfg)
    network = GradAugDetector(model, GradAugOptions(supervision=supervision))
    data = model.data_preprocessor(collated(tiny_items()), True)
    batch = make_batch(data["inputs"], data["data_samples"])
    _, calls = network.full_pass(batch)
    recorded = {n: b.clone() for n, b in model.named_buffers()}
    assert int(recorded["neck.fpn_convs.0.bn.num_batches_tracked"]) == 1
    sub_network_passes(network, batch, calls, [SubNetwork(0, 0.8, BatchTransform(0.714))])
    assert_same(recorded, dict(model.named_buffers()))
