"""The processes of a benchmark: one, or those that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist


@contextmanager
def processes() -> Iterator[None]:
    """Within the block, all processes that ``torchrun`` started know each other."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    # Nothing on a GPU is exchanged: gloo serves on every device. The first process scores and
    # measures alone, for longer than the usual half hour on COCO.
    dist.init_process_group("gloo", timeout=timedelta(hours=12))
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def wait_for_all() -> None:
    if dist.is_initialized():
        dist.barrier()
