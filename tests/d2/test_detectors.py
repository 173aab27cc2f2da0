"""Every detector trains with every supervision, through Detectron2's own loop."""

import pytest
import torch

from gradaug_det.d2 import GradAugHook

from .helpers import KINDS, batches, tiny_model, train


@pytest.mark.parametrize("supervision", ["soft", "labels", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_trains(kind, supervision):
    model = tiny_model(kind)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    masks = "bitmask" if supervision == "both" else "polygon"
    slim = "detector" if supervision == "both" else "backbone"
    settings = {"num_subnets": 2, "scales": [1.0, 0.6], "flip_prob": 0.5, "slim": slim}
    hook = GradAugHook(supervision=supervision, **settings)
    trainer = train(model, hook, steps=3, data=batches(masks))
    assert all(p.isfinite().all() for p in model.parameters())
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert len(changed) == len(before)
    losses = {k: v for k, (v, _) in trainer.storage.latest().items() if k.startswith("gradaug/")}
    kinds = {k.split("/")[2].split("_")[0] for k in losses} - {"loss", "width", "scale"}
    assert kinds == ({"soft", "labels"} if supervision == "both" else {supervision})


@pytest.mark.parametrize("norm", ["GN", "BN", "SyncBN"])
def test_norms(norm):
    """With real BatchNorm in the backbone, running statistics are the full pass's alone."""
    statistics = {}
    for name, hook in (("plain", None), ("gradaug", GradAugHook(num_subnets=2, scales=[0.7]))):
        model = tiny_model("faster_rcnn", norm=norm if norm != "SyncBN" else "BN")
        if norm == "SyncBN":
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
            model.eval()  # SyncBatchNorm trains on accelerators only
            model.training = True
            for part in (model.proposal_generator, model.roi_heads):
                part.train()
        train(model, hook, steps=1, lr=0.0)
        statistics[name] = {k: v.clone() for k, v in model.named_buffers() if "running" in k}
    assert statistics["plain"].keys() == statistics["gradaug"].keys()
    assert bool(statistics["plain"]) == (norm != "GN")
    for key, value in statistics["plain"].items():
        assert torch.equal(statistics["gradaug"][key], value), key


def test_batch_norm_in_neck_and_heads_keeps_its_statistics():
    from .helpers import tiny_cfg

    buffers = {}
    for name in ("plain", "gradaug"):
        cfg = tiny_cfg("faster_rcnn")
        cfg.MODEL.FPN.NORM = "BN"
        hook = GradAugHook(num_subnets=1, scales=[0.7], supervision="both")
        model = tiny_model(cfg=cfg)
        train(model, hook if name == "gradaug" else None, steps=1, lr=0.0)
        buffers[name] = {k: v.clone() for k, v in model.named_buffers() if "fpn" in k}
    assert len(buffers["plain"]) >= 24
    for key, value in buffers["plain"].items():
        assert torch.equal(buffers["gradaug"][key], value), key
