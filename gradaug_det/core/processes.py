"""Processes of a training tell one another of problems, and take turns at what one can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gradaug_det.errors import GradAugError, NonFiniteLossError


class Meeting:
    """Where the processes of a training learn of each other's problems, on the host.

    Make one at the same place in every process.
    """

    def __init__(self) -> None:
        self.several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group = None
        if self.several:
            # A group of its own: nothing here is ever paired with a collective of the model, or of
            # a thread that writes metrics. On the host, so that nobody waits for a device.
            self._group = dist.new_group(backend="gloo", timeout=_time_limit())

    def problems(self, own: str = "") -> dict[int, str]:
        """The problems of all processes that have one, by rank. All processes call it.

        Raises:
            GradAugError: a process has left; its own output has the reason.
        """
        if not self.several:
            return {0: own} if own else {}
        texts: list[Any] = [None] * dist.get_world_size()
        # Texts are rarely there to be exchanged: one number says so.
        if self.largest([bool(own)])[0]:
            with _said_of_others():
                dist.all_gather_object(texts, own, group=self._group)
        return {rank: text for rank, text in enumerate(texts) if text}

    def largest(self, own: Sequence[int]) -> list[int]:
        """The largest of each of the numbers in any process. All processes call it.

        Raises:
            GradAugError: a process has left.
        """
        numbers = torch.tensor(own, dtype=torch.int32)
        if self.several:
            if self._group is None:  # would be the model's own group
                raise GradAugError("this process has left the training's other processes")
            with _said_of_others():
                dist.all_reduce(numbers, op=dist.ReduceOp.MAX, group=self._group)
        return numbers.tolist()

    def first_problem(
        self, own: NonFiniteLossError | None, sub: object = None
    ) -> NonFiniteLossError | None:
        """This process's problem, else that of the first process which has one. All call it."""
        found = self.problems(str(own or ""))
        if own or not found:
            return own
        rank, text = next(iter(found.items()))
        return NonFiniteLossError(f"in process {rank}: {text}", sub, here=False)

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank, in the first one; an empty list in the others."""
        if not self.several:
            return [value]
        first = dist.get_rank() == 0
        values = [None] * dist.get_world_size() if first else []
        dist.gather_object(value, values if first else None, group=self._group)
        return values

    def close(self) -> None:
        """Leaves: processes that are still waiting for this one get an error at once."""
        group, self._group = self._group, None
        if group is not None and dist.is_initialized():
            dist.destroy_process_group(group)


@contextmanager
def _said_of_others() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        raise GradAugError(
            "another process of this training has stopped, or does not answer; its own output "
            f"says why ({error})"
        ) from error


def _time_limit() -> timedelta | None:
    """The default group's, which users raise for long evaluations; None if it cannot be had."""
    try:
        world = dist.group.WORLD
        return world._get_backend(world._device_types[0]).options._timeout
    except (AttributeError, IndexError, RuntimeError):  # private to PyTorch
        return None


def synchronized_norms(module: nn.Module, beside: nn.Module) -> list[str]:
    """Names of the layers in training mode, but for those of ``beside``, that take their
    statistics from all processes: PyTorch's SyncBatchNorm and whatever is called so."""
    apart = set(beside.modules())
    return [
        f"{name} ({type(layer).__name__})"
        for name, layer in module.named_modules()
        if layer.training
        and layer not in apart
        and any("SyncBatchNorm" in kind.__name__ for kind in type(layer).__mro__)
    ]


def run_once_a_machine(
    check: Callable[[], Any], is_first: bool, gather: Callable[[Any], list[Any]]
) -> Any:
    """Runs a check in one process of each machine; all have its result, or raise its error.

    Args:
        check: returns, and raises, what can be pickled.
        is_first: whether this process is the one of its machine.
        gather: an object of this process -> those of all processes, here alone as well.
    """
    result, error, own = None, None, None
    if is_first:
        try:
            result = check()
        except GradAugError as caught:
            error = caught
        except Exception as caught:
            # The others must not wait. It may be of anyone's making, and not survive pickling.
            own, error = caught, GradAugError(f"{type(caught).__name__}: {caught}")
    found = gather((result, error))
    if own is not None and len(found) == 1:
        raise own
    for _, error in found:
        if error is not None:
            raise error from own
    return next((result for result, _ in found if result is not None), None)
