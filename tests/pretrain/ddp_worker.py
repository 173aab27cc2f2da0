"""One process of a distributed pretraining: its gradients after one step, and its weights."""

import sys

import torch
from lightning_fabric import Fabric

from gradaug_det.pretrain.data import train_loader
from gradaug_det.pretrain.engine import Pretraining
from tests.pretrain.helpers import tiny_recipe

METHODS = (("gradaug",), ("anywidth", "gradaug.full_share=0.01"))  # whose first step is narrow


def main(out: str, world: int) -> None:
    fabric = Fabric(accelerator="cpu", devices=world)
    fabric.launch()
    for method, *overrides in METHODS:
        step(out, method, Pretraining(tiny_recipe(method, *overrides), f"{out}/{method}", fabric))


def step(out: str, method: str, training: Pretraining) -> None:
    fabric = training.fabric
    crossed = []
    original = torch.distributed.all_reduce

    def counted(tensor, *args, **kwargs):
        crossed.append(tensor.numel() * tensor.element_size() * tensor.is_floating_point())
        return original(tensor, *args, **kwargs)

    torch.distributed.all_reduce = counted
    images, labels = next(iter(train_loader(training.images, training.recipe, training.batches)))
    training.train_step(0, images, labels)
    torch.distributed.all_reduce = original
    state = {
        "gradients": {n: p.grad for n, p in training.model.named_parameters()},
        "weights": training.model.state_dict(),
        "bytes": sum(crossed),
    }
    torch.save(state, f"{out}/{method}_rank{fabric.global_rank}.pth")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
