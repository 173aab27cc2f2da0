"""Gradients across processes, and autocast regions entered again."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from gradaug_det.core.engine import average_gradients, current_autocast


def _average(rank, address, out):
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    torch.manual_seed(0)
    module = nn.ModuleDict(
        {
            "both": nn.Linear(3000, 3000),  # 36 MB: more than a bucket
            "one": nn.Linear(4, 4).double(),  # used on rank 1 alone, and of another dtype
            "none": nn.Linear(4, 4),
            "frozen": nn.Linear(4, 4).requires_grad_(False),
        }
    )
    for parameter in module["both"].parameters():
        parameter.grad = torch.full_like(parameter, rank + 1.0)
    if rank == 1:
        for parameter in module["one"].parameters():
            parameter.grad = torch.full_like(parameter, 4.0)
    average_gradients(module)
    torch.save({n: p.grad for n, p in module.named_parameters()}, f"{out}/{rank}.pth")
    dist.destroy_process_group()


def test_average_gradients_of_two_processes(tmp_path):
    mp.spawn(_average, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    for rank in range(2):
        grads = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert (grads["both.weight"] == 1.5).all()
        assert (grads["both.bias"] == 1.5).all()
        assert (grads["one.weight"] == 2.0).all()
        assert grads["one.weight"].dtype == torch.float64
        assert grads["none.weight"] is None  # an optimizer must not touch it
        assert grads["frozen.weight"] is None


def test_current_autocast():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = current_autocast("cpu")
    outside = current_autocast("cpu")
    with inside:
        assert (x @ x).dtype == torch.bfloat16
    with outside:
        assert (x @ x).dtype == torch.float32
