"""Algorithm 1 of GradAug, for any network that can make and meet soft targets; and the step that is
one pass, at full width or narrow."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from gradaug_det.core.depth import at_depth
from gradaug_det.core.processes import Meeting, synchronized_norms
from gradaug_det.core.sampling import FULL, SubNetwork
from gradaug_det.core.slimming import Overrides, at_width, no_traces
from gradaug_det.errors import NonFiniteLossError
from gradaug_det.utils.seeding import isolated_rng

logger = logging.getLogger(__name__)

Losses = dict[str, Tensor]


class Trainable(Protocol):
    """A network in training, as Algorithm 1 needs it."""

    module: nn.Module  # the whole network
    backbone: nn.Module  # the part of it whose residual blocks are sampled
    slimmed: nn.Module  # the part of it whose channels are sampled
    subnet_norm: str  # norm policy of the sub-networks; see core.slimming.at_width

    def full_pass(self, batch: Any) -> tuple[Losses, Any]:
        """Returns the losses against the labels, and the detached soft target."""

    def sub_network_pass(self, batch: Any, soft_target: Any, sub: SubNetwork) -> Losses:
        """Returns the sub-network's losses on the batch transformed by ``sub.transform``."""


@dataclass
class SubNetworkLosses:
    """The losses of one pass, weighted and detached."""

    sub: SubNetwork
    losses: Losses
    problem: NonFiniteLossError | None = None  # that a loss is not finite, here or elsewhere
    values: list[float] | None = None  # of the losses, once they are read from the device

    @property
    def total(self) -> Tensor:
        return sum(self.losses.values())

    def describe(self, total: float) -> str:
        """Returns, for the log, its width, its scale and the given sum of losses."""
        sub = self.sub
        if sub.index is None:
            return f"width {sub.width:g} loss {total:.4g}"
        mirrored = " mirrored" if sub.transform.flip else ""
        return (
            f"sub{sub.index} width {sub.width:.3f} scale {sub.transform.scale:g}{mirrored} "
            f"loss {total:.4g}"
        )


def values_of(results: Sequence[SubNetworkLosses]) -> list[float]:
    """Returns all of the losses in order, read from the device at once, and once only."""
    unread = [result for result in results if result.values is None]
    losses = [loss.float() for result in unread for loss in result.losses.values()]
    losses = [loss.to(losses[0].device) for loss in losses]
    values = iter(torch.stack(losses).tolist() if losses else ())
    for result in unread:
        result.values = [next(values) for _ in result.losses]
    return [value for result in results for value in result.values]


def gradaug_step(
    network: Trainable,
    batch: Any,
    sub_networks: Iterable[SubNetwork],
    backward: Callable[[Tensor], Any] = Tensor.backward,
    meeting: Meeting | None = None,
    own: SubNetwork = FULL,
) -> tuple[Losses, list[SubNetworkLosses]]:
    """One step up to the optimizer: leaves the sum of all gradients in ``.grad``.

    Args:
        network: in training mode, its gradients zeroed.
        batch: whatever the network takes.
        sub_networks: from :func:`~gradaug_det.core.sampling.sample_sub_networks`; none with
            alternating passes.
        backward: called with each loss, e.g. ``lambda loss: scaler.scale(loss).backward()``.
        meeting: of the training's processes, where there are several.
        own: from :func:`~gradaug_det.core.sampling.sample_own_pass`: narrow in some steps of
            alternating passes, in Algorithm 1 always full.

    Returns:
        The network's own losses, and those of each sub-network.

    Source: GradAug, Algorithm 1.
    """
    with narrowed(network, own):
        losses, soft_target = network.full_pass(batch)
        backward(sum(losses.values()))
    return losses, sub_network_passes(
        network, batch, soft_target, sub_networks, backward, meeting=meeting
    )


@contextmanager
def narrowed(network: Trainable, own: SubNetwork) -> Iterator[None]:
    """Within the block, passes of ``network``, forward and backward, have the width of ``own``; at
    full width nothing is changed.

    Running statistics are the full network's alone. What else a layer counts or averages (positive
    samples, steps) goes on: it is the data's, not the width's. Channels that took no part have
    zeros in ``.grad`` afterwards, and the optimizer treats these as any other gradient.
    """
    if own.width == 1:
        yield
        return
    with Overrides() as overrides:
        for layer in network.module.modules():
            for key in ("running_mean", "running_var", "num_batches_tracked"):
                if layer.training and layer._buffers.get(key) is not None:
                    overrides.set(layer._buffers, key, layer._buffers[key].clone())
        overrides.enter_context(
            at_width(network.slimmed, own.width, network.subnet_norm, own.divisor)
        )
        yield


def sub_network_passes(
    network: Trainable,
    batch: Any,
    soft_target: Any,
    sub_networks: Iterable[SubNetwork],
    backward: Callable[[Tensor], Any] = Tensor.backward,
    *,
    nonfinite: str = "raise",
    meeting: Meeting | None = None,
) -> list[SubNetworkLosses]:
    """The second half of :func:`gradaug_step`, for engines that run their own pass themselves.

    Args:
        nonfinite: what is done about a loss that is not finite. ``raise``: an error, once all
            passes are done: nothing waits for the device between them. ``note``: the same, but
            the caller finds it as the result's ``problem``. ``skip``: that sub-network is left
            out, in all processes, for which each pass waits for its losses.

    Raises:
        NonFiniteLossError: a sub-network's loss is not finite, here or in another process.
    """
    results: list[SubNetworkLosses] = []
    for sub in sub_networks:
        with (
            no_traces(network.module),
            at_width(network.slimmed, sub.width, network.subnet_norm, sub.divisor),
            at_depth(network.backbone, sub.block_survival, sub.seed),
            isolated_rng(sub.seed + process_rank(), next(network.module.parameters()).device),
        ):
            losses, problem = _pass(network, batch, soft_target, sub, meeting)
            detached = {name: loss.detach() for name, loss in losses.items()}
            results.append(SubNetworkLosses(sub, detached, problem))
            if nonfinite == "skip":
                # What one process leaves out would be missing in the others' collectives.
                _find_problem(results[-1:], meeting)
            if losses and not results[-1].problem:
                # At the sub-network's width too: activation checkpointing runs the forward pass
                # again in it.
                backward(sum(losses.values()))
        if problem and nonfinite == "raise":
            break
    if nonfinite != "skip":
        problem = _find_problem(results, meeting)
        if problem and nonfinite == "raise":
            raise problem
    return results


def _find_problem(
    results: Sequence[SubNetworkLosses], meeting: Meeting | None
) -> NonFiniteLossError | None:
    """Reads losses, and notes the first problem of this process, else that of another one."""
    values_of(results)
    for result in results:
        total = sum(result.values)  # a loss is added up in float32, and so can be too large
        if not result.problem and not abs(total) <= torch.finfo(torch.float32).max:
            named = zip(result.losses, result.values, strict=True)
            bad = {name: value for name, value in named if not math.isfinite(value)}
            bad = bad or {"their sum": total}
            message = f"{_name(result.sub)} has the losses {bad}; the optimizer has not stepped"
            result.problem = NonFiniteLossError(message, result.sub, bad)
    first = next((result.problem for result in results if result.problem), None)
    if meeting and results:
        first = meeting.first_problem(first, results[-1].sub)
        results[-1].problem = results[-1].problem or first
    return first


def _name(sub: SubNetwork) -> str:
    where = f"iteration {sub.iteration}: sub-network {sub.index}"
    return f"{where} (width {sub.width:.4f}, {sub.transform})"


def process_rank() -> int:
    """Returns this process's number in a distributed training; 0 outside one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _pass(
    network: Trainable, batch: Any, soft_target: Any, sub: SubNetwork, meeting: Meeting | None
) -> tuple[Losses, NonFiniteLossError | None]:
    """Returns a sub-network's losses; none at all, and why, if its forward pass stopped at a number
    that is not finite, as Detectron2's choice of proposals does."""
    try:
        return network.sub_network_pass(batch, soft_target, sub), None
    except FloatingPointError as error:
        message = f"{_name(sub)} stopped: {error}; the optimizer has not stepped"
        if meeting and meeting.several:
            waiting = synchronized_norms(network.module, network.backbone)
            if waiting:
                raise NonFiniteLossError(
                    f"{message}. It cannot be skipped, nor can the other processes be told: they "
                    f"wait for this one in {waiting[0]}, a norm over all processes",
                    sub,
                ) from error
            # Said before the others are waited for: they may be waiting in a collective of a
            # head, which nothing here knows of.
            logger.error("%s; waiting for the other processes", message)
        return {}, NonFiniteLossError(message, sub)
