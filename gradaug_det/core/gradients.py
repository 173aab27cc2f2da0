"""Precision and gradients of passes that run inside somebody else's training step."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradaug_det.core.processes import Meeting
from gradaug_det.errors import ConfigError, NonFiniteLossError

BUCKET_BYTES = 25 * 2**20
# DDP's communication hooks, and what they send gradients in.
_SENT = {
    "allreduce_hook": None,
    "fp16_compress_hook": torch.float16,
    "bf16_compress_hook": torch.bfloat16,
}


def current_autocast(device_type: str) -> AbstractContextManager:
    """Returns the autocast region that is active now, to be entered again later."""
    try:
        enabled = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type)
    except TypeError:  # torch < 2.4 has one function a device type
        cpu = device_type == "cpu"
        enabled = torch.is_autocast_cpu_enabled() if cpu else torch.is_autocast_enabled()
        dtype = torch.get_autocast_cpu_dtype() if cpu else torch.get_autocast_gpu_dtype()
    return torch.autocast(device_type, dtype=dtype) if enabled else nullcontext()


@torch.no_grad()
def average_gradients(
    module: nn.Module,
    meeting: Meeting,
    dtype: torch.dtype | None = None,
    early: EarlyGradients | None = None,
) -> None:
    """Averages ``.grad`` over all processes, once for all the passes of a step.

    A parameter that has a gradient on some processes counts as zero on the others; one that has
    none anywhere keeps none, so that the optimizer leaves it alone.

    Args:
        dtype: that gradients are sent in; see :func:`sent_dtype`.
        early: those that may be on their way already; in all processes or in none.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        return
    early = early or EarlyGradients((), dtype)
    early.send()  # where this process did not get so far
    changed = [message.has_changed for message in early.messages]
    # Which heads ran can differ between processes, but all must reduce the same tensors. Asked on
    # the host: nobody waits for a device.
    used = [p.grad is not None and not early.is_filler(p) for p in parameters]
    answers = meeting.largest([*used, *changed])
    for message, again in zip(early.messages, answers[len(parameters) :], strict=True):
        if again:
            message.work.wait()
            message = _Message(message.gradients, dtype)
        message.copy()
    done = {id(gradient) for message in early.messages for gradient in message.gradients}
    gradients = []
    for parameter, is_used in zip(parameters, answers[: len(parameters)], strict=True):
        if not is_used:
            parameter.grad = None
        elif parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None and id(parameter.grad) not in done:
            gradients.append(parameter.grad)
    sent: deque[_Message] = deque()
    for bucket in _buckets(gradients):
        sent.append(_Message(bucket, dtype))
        if len(sent) == 2:  # one is copied while the other is on its way
            sent.popleft().copy()
    while sent:
        sent.popleft().copy()


class _Message:
    """Gradients on their way to all processes."""

    def __init__(self, gradients: list[Tensor], dtype: torch.dtype | None) -> None:
        self.gradients, self._versions = gradients, [g._version for g in gradients]
        # Divided first, as DDP does: a sum can be too large for 16 bits.
        flat = torch.cat([g.reshape(-1) for g in gradients]).div_(dist.get_world_size())
        self._flat = flat if dtype is None else flat.to(dtype)
        self.work = dist.all_reduce(self._flat, async_op=True)

    @property
    def has_changed(self) -> bool:
        """Whether something was added to a gradient after it was sent."""
        return self._versions != [gradient._version for gradient in self.gradients]

    def copy(self) -> None:
        """Waits for the means, and writes them into the gradients."""
        self.work.wait()
        parts = self._flat.split([gradient.numel() for gradient in self.gradients])
        for gradient, part in zip(self.gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


class EarlyGradients:
    """Gradients that are sent while the last backward pass is still in other layers.

    Args:
        parameters: whose gradients are thought to be final then; those that are not are sent again.
        dtype: that gradients are sent in.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], dtype: torch.dtype | None) -> None:
        self.messages: list[_Message] = []
        self._parameters, self._dtype = list(parameters), dtype
        self._fillers: dict[nn.Parameter, int] = {}  # and the versions of their gradients

    @torch.no_grad()
    def send(self) -> None:
        """Sends the gradients, once; with zeros for those that are not there, as they may be in
        another process."""
        if self.messages:
            return
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
                self._fillers[parameter] = parameter.grad._version
        gradients = [parameter.grad for parameter in self._parameters]
        self.messages = [_Message(bucket, self._dtype) for bucket in _buckets(gradients)]

    def is_filler(self, parameter: nn.Parameter) -> bool:
        """Whether the parameter has had no gradient here but these zeros."""
        return self._fillers.get(parameter) == parameter.grad._version


def sent_dtype(model: DistributedDataParallel) -> torch.dtype | None:
    """Returns the precision in which a DDP's communication hook sends gradients; None for theirs.

    Raises:
        ConfigError: the hook does something else, which would be left out.
    """
    name = model._get_ddp_logging_data().get("comm_hook")
    if name is None or name in _SENT:
        return _SENT.get(name)
    raise ConfigError(
        "register_comm_hook",
        f"of DistributedDataParallel was called with {name}, which gradients of sub-networks would "
        f"not pass; allowed are {', '.join(_SENT)}",
    )


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yields groups of one dtype and device and about 25 MB, in order."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(one.nbytes for one in bucket) + tensor.nbytes
        kind = (tensor.dtype, tensor.device)
        if bucket and (size > BUCKET_BYTES or kind != (bucket[0].dtype, bucket[0].device)):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


@torch.no_grad()
def overflow(module: nn.Module) -> None:
    """Makes all gradients infinite: float16's scaler then skips the optimizer's step."""
    for parameter in module.parameters():
        if parameter.grad is not None:
            parameter.grad.fill_(math.inf)


@torch.no_grad()
def check_gradients(
    module: nn.Module,
    iteration: int,
    skip: bool,
    scaler: Any = None,
    meeting: Meeting | None = None,
) -> bool:
    """Looks at the sum of a step's gradients before the optimizer does: a finite loss can have a
    gradient that is not. After :func:`average_gradients` all processes find the same.

    Args:
        iteration: for the error.
        skip: whether to set the gradients to 0, all of them, instead of raising: also what earlier
            iterations of an accumulated step have left in them.
        scaler: of the gradients, if there is one: it looks for itself, and skips the step.
        meeting: where the processes learn of each other's problems, if their gradients are not
            averaged yet.

    Returns:
        Whether they were finite.

    Raises:
        NonFiniteLossError: they are not.
    """
    if scaler is not None and scaler.is_enabled():
        return True
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    bad, problem = _count_nonfinite(gradients), None
    if bad:
        problem = NonFiniteLossError(
            f"iteration {iteration}: {bad} of {len(gradients)} parameters have a gradient that is "
            "not finite; the optimizer has not stepped"
        )
    if meeting:
        problem = meeting.first_problem(problem)
    if problem and not skip:
        raise problem
    for gradient in gradients if problem else ():
        gradient.zero_()
    return problem is None


def _count_nonfinite(gradients: list[Tensor]) -> int:
    if not gradients:
        return 0
    # A sum is a sixteenth of the time of a look at every number, on CPUs. It can overflow: so look.
    sums = [g.sum(dtype=torch.promote_types(g.dtype, torch.float32)).float() for g in gradients]
    if torch.stack(sums).isfinite().all():
        return 0
    return sum(not g.isfinite().all() for g in gradients)
