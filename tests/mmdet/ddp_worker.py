"""One process of the distributed test; run as a program, see test_distributed.py."""

# ruff: noqa: C408  (dict(...) is how MMEngine's configs are written)

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from tests.mmdet.helpers import ALTERNATING, make_runner, parameters, tiny_model

HOOK = dict(num_subnets=2, min_width=0.7, flip_prob=0.5, seed=5, supervision="both")
ITERATIONS = 4


# Name -> detector, accumulated iterations, hook. RetinaNet is in float64, which MMCV's NMS for the
# CPU cannot do. Of the alternating passes the last accumulated one is once full, once narrow.
TRAININGS = {
    "added": ("mask_rcnn", 1, HOOK),
    "accumulated": ("retinanet", 2, HOOK),
    "alternating": ("retinanet", 2, ALTERNATING | dict(seed=5)),
}


def build(kind):
    return tiny_model(kind, double=kind == "retinanet")


def train(folder, name):
    """Trains on this rank's share of the data and saves what came out."""
    rank = dist.get_rank()
    kind, counts, hook = TRAININGS[name]
    model = build(kind)
    runner = make_runner(
        model,
        folder / name,
        hook,
        optim=dict(accumulative_counts=counts),
        loop=dict(type="IterBasedTrainLoop", max_iters=ITERATIONS),
        launcher="pytorch",
        cfg=dict(
            model_wrapper_cfg=dict(
                type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=True
            )
        ),
        train_dataloader=dict(
            batch_size=1,
            num_workers=0,
            sampler=dict(type="InfiniteSampler", shuffle=False),
            dataset=dict(type="TinyDataset", length=8),
            collate_fn=dict(type="pseudo_collate"),
        ),
    )
    reductions = []

    def note(state, bucket):
        reductions.append(bucket.index())
        return allreduce_hook(state, bucket)

    note.__qualname__ = allreduce_hook.__qualname__  # others are refused
    runner.model.register_comm_hook(None, note)
    with torch.no_grad():  # what DDP broadcasts before each forward pass
        model.backbone.bn1.running_mean += rank
    runner.train()
    losses = {
        name: buffer.data[0].tolist()
        for name, buffer in runner.message_hub.log_scalars.items()
        if name.endswith("loss")
    }
    state = dict(
        parameters=parameters(model),
        buffers=dict(model.named_buffers()),
        losses=losses,
        reductions=len(reductions),
        require_forward_param_sync=runner.model.require_forward_param_sync,
    )
    torch.save(state, folder / f"{name}_rank{rank}.pth")


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for training in TRAININGS:
        train(Path(sys.argv[1]), training)
    dist.destroy_process_group()
