"""Processes that something else than Detectron2's ``launch`` started: ``torchrun``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm


def started_by_torchrun() -> bool:
    """Whether this is one of the processes that ``torchrun`` starts."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= set(os.environ)


@contextmanager
def joined_processes() -> Iterator[None]:
    """Within the block, Detectron2 knows the processes that ``torchrun`` started."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Others wait while the first process scores a large test set.
    dist.init_process_group("nccl" if cuda else "gloo", timeout=DEFAULT_TIMEOUT)
    try:
        _tell_machines(int(os.environ["LOCAL_WORLD_SIZE"]))
        comm.synchronize()
        yield
    finally:
        dist.destroy_process_group()


def _tell_machines(size: int) -> None:
    """Tells Detectron2 which processes share a machine; all machines have ``size`` of them."""
    if hasattr(comm, "create_local_process_group"):  # today's main branch
        comm.create_local_process_group(size)
        return
    for first in range(0, dist.get_world_size(), size):
        ranks = list(range(first, first + size))
        group = dist.new_group(ranks)
        if dist.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group
