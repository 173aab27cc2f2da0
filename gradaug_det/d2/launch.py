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
    """Returns whether this is one of the processes that ``torchrun`` starts."""
    return {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"} <= set(os.environ)


@contextmanager
def join_processes() -> Iterator[None]:
    """Tells Detectron2, within the block, of the processes that ``torchrun`` started."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # Others wait while the first process scores a large test set.
    dist.init_process_group("nccl" if cuda else "gloo", timeout=DEFAULT_TIMEOUT)
    try:
        machine = int(os.environ["LOCAL_WORLD_SIZE"])  # processes; all machines have as many
        if hasattr(comm, "create_local_process_group"):  # today's main branch
            comm.create_local_process_group(machine)
        else:
            for first in range(0, dist.get_world_size(), machine):
                ranks = list(range(first, first + machine))
                group = dist.new_group(ranks)  # all processes make all groups
                if dist.get_rank() in ranks:
                    comm._LOCAL_PROCESS_GROUP = group
        comm.synchronize()
        yield
    finally:
        dist.destroy_process_group()
