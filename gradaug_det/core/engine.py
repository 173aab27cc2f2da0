"""What running extra passes inside somebody's training step needs: precision and gradients."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 25 * 2**20


def current_autocast(device_type: str) -> AbstractContextManager:
    """The autocast region that is active now, to be entered again later."""
    try:
        enabled, dtype = (
            torch.is_autocast_enabled(device_type),
            torch.get_autocast_dtype(device_type),
        )
    except TypeError:  # torch < 2.4 has one function a device type
        cpu = device_type == "cpu"
        enabled = torch.is_autocast_cpu_enabled() if cpu else torch.is_autocast_enabled()
        dtype = torch.get_autocast_cpu_dtype() if cpu else torch.get_autocast_gpu_dtype()
    return torch.autocast(device_type, dtype=dtype) if enabled else nullcontext()


@torch.no_grad()
def average_gradients(module: nn.Module) -> None:
    """Averages ``.grad`` over all processes, once for all the passes of a step.

    A parameter that has a gradient on some processes counts as zero on the others; one that has
    none anywhere keeps none, so that the optimizer leaves it alone.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        return
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
    used = used.to(parameters[0].device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    gradients = []
    for parameter, is_used in zip(parameters, used.tolist(), strict=True):
        if is_used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([g.reshape(-1) for g in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Groups of one dtype and device and about 25 MB, in order."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        kin = not bucket or (tensor.dtype, tensor.device) == (bucket[0].dtype, bucket[0].device)
        if bucket and (not kin or size + tensor.nbytes > BUCKET_BYTES):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
