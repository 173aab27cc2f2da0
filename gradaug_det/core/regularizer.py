"""Algorithm 1 of GradAug, for any network that can make and meet soft targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from gradaug_det.core.sampling import SubNetwork
from gradaug_det.core.slimming import at_width

Losses = dict[str, Tensor]


class Trainable(Protocol):
    """What Algorithm 1 needs of a network in training."""

    backbone: nn.Module
    """The part whose channels are sampled."""

    subnet_norm: str
    """Norm policy of the sub-networks; see :func:`gradaug_det.core.slimming.at_width`."""

    def full_pass(self, batch: Any) -> tuple[Losses, Any]:
        """Losses against the labels, and the detached soft target."""

    def sub_network_pass(self, batch: Any, soft_target: Any, sub: SubNetwork) -> Losses:
        """Losses of the sub-network on the batch transformed by ``sub.transform``."""


@dataclass(frozen=True)
class SubNetworkLosses:
    """What one sub-network's pass gave: its losses, detached, before the loss weight."""

    sub: SubNetwork
    losses: Losses

    @property
    def total(self) -> Tensor:
        return sum(self.losses.values())


def gradaug_step(
    network: Trainable,
    batch: Any,
    sub_networks: Iterable[SubNetwork],
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> tuple[Losses, list[SubNetworkLosses]]:
    """One step of Algorithm 1 up to the optimizer: leaves the sum of all gradients in ``.grad``.

    Args:
        network: the network in training mode, its gradients zeroed.
        batch: whatever the network takes.
        sub_networks: from a :class:`~gradaug_det.core.sampling.SubNetworkSampler`.
        backward: called with each loss, e.g. ``lambda loss: scaler.scale(loss).backward()``.

    Returns:
        The full network's losses, and those of each sub-network.

    Source: GradAug, Algorithm 1.
    """
    losses, soft_target = network.full_pass(batch)
    backward(sum(losses.values()))
    return losses, sub_network_passes(network, batch, soft_target, sub_networks, backward)


def sub_network_passes(
    network: Trainable,
    batch: Any,
    soft_target: Any,
    sub_networks: Iterable[SubNetwork],
    backward: Callable[[Tensor], Any] = Tensor.backward,
    loss_weight: float = 1.0,
) -> list[SubNetworkLosses]:
    """The second half of :func:`gradaug_step`, for engines that ran the full pass themselves.

    The backward pass runs at the sub-network's width too: activation checkpointing then recomputes
    what the forward pass computed.
    """
    results = []
    for sub in sub_networks:
        with at_width(network.backbone, sub.width, network.subnet_norm):
            losses = network.sub_network_pass(batch, soft_target, sub)
            backward(loss_weight * sum(losses.values()))
        results.append(SubNetworkLosses(sub, {k: v.detach() for k, v in losses.items()}))
    return results
