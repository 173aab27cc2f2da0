"""What a training on many GPUs costs, on paper: measured pieces put together by a simple model.

A step of GradAug is its passes one after the other, then one all-reduce of the gradients (they
cross the network once, after all passes, so nothing hides it). Images are loaded meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradaug_det.core.checks import check_integer, check_number

BATCH = 16
"""Images of a step in the 1x schedule, which is 90,000 steps long; larger batches have fewer."""
ITERATIONS = 90_000


@dataclass(frozen=True)
class Cluster:
    """GPUs and what is between them.

    Args:
        gpus: of all nodes.
        gpus_per_node: of one node.
        node_bandwidth: bytes a second that a GPU sends in an all-reduce within its node.
        network_bandwidth: bytes a second that a node sends to others.
        latency: seconds of one message.

    Raises:
        ConfigError: a value is not allowed.
    """

    gpus: int
    gpus_per_node: int = 8
    node_bandwidth: float = 60e9
    network_bandwidth: float = 10e9
    latency: float = 20e-6

    def __post_init__(self) -> None:
        check_integer("gpus", self.gpus, low=1)
        check_integer("gpus_per_node", self.gpus_per_node, low=1)
        check_number("node_bandwidth", self.node_bandwidth, above=0.0)
        check_number("network_bandwidth", self.network_bandwidth, above=0.0)
        check_number("latency", self.latency)

    def all_reduce_seconds(self, size: int, messages: int = 1) -> float:
        """Of ``size`` bytes in so many messages: a ring within each node, then one between nodes.

        A ring of g sends 2 (g - 1) / g of the bytes, in 2 (g - 1) turns.
        """
        inside = min(self.gpus, self.gpus_per_node)
        nodes = math.ceil(self.gpus / self.gpus_per_node)
        turns = 2 * (inside - 1 + nodes - 1)
        within = 2 * (inside - 1) / inside * size / self.node_bandwidth
        between = 2 * (nodes - 1) / nodes * size / self.network_bandwidth
        return within + between + turns * messages * self.latency


@dataclass(frozen=True)
class Pieces:
    """What the model is made of.

    Args:
        plain_seconds: of a plain step's passes on one GPU.
        images_per_gpu: of a step.
        gradient_bytes: that cross the network once a step.
        messages: in which they do.
        load_seconds: of one processor core to load and augment an image.
        loaders: processes that load images, for each GPU.
    """

    plain_seconds: float
    images_per_gpu: int
    gradient_bytes: int
    messages: int
    load_seconds: float
    loaders: int


def predict(pieces: Pieces, cluster: Cluster, compute_ratio: float, plain: bool) -> dict[str, Any]:
    """A step and the 1x schedule on a cluster.

    Args:
        compute_ratio: time of the step's passes over the plain step's.
        plain: whether DistributedDataParallel hides the all-reduce behind the backward pass, which
            is about two thirds of the step; GradAug's waits for the last pass.

    Returns:
        ``compute``, ``data``, ``all_reduce`` (what is not hidden), ``step`` (seconds),
        ``bottleneck``, ``images_per_second``, ``hours`` (of the 1x schedule) and ``loaders``
        (processes for each GPU that would just do).
    """
    compute = pieces.plain_seconds * compute_ratio
    all_reduce = cluster.all_reduce_seconds(pieces.gradient_bytes, pieces.messages)
    if plain:
        all_reduce = max(0.0, all_reduce - compute * 2 / 3)
    loading = pieces.images_per_gpu * pieces.load_seconds
    parts = {"compute": compute, "data": loading / pieces.loaders, "all_reduce": all_reduce}
    step = max(compute + all_reduce, parts["data"])
    batch = pieces.images_per_gpu * cluster.gpus
    return {
        **parts,
        "step": step,
        "bottleneck": max(parts, key=parts.__getitem__),
        "images_per_second": batch / step,
        "hours": ITERATIONS * BATCH / batch * step / 3600,
        "loaders": math.ceil(loading / (compute + all_reduce)),
    }


def predictions(
    pieces: Pieces, clusters: Mapping[str, Cluster], compute_ratios: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Rows of the table: every training on every cluster; ``ratio`` is to the plain step there,
    ``efficiency`` to the images a second of as many single GPUs."""
    rows = []
    for title, cluster in clusters.items():
        plain = predict(pieces, cluster, 1.0, plain=True)
        for name, ratio in compute_ratios.items():
            own = predict(pieces, cluster, ratio, plain=name == "plain")
            alone = predict(pieces, Cluster(1), ratio, plain=name == "plain")
            rows.append(
                {
                    "cluster": title,
                    "training": name,
                    **own,
                    "ratio": own["step"] / plain["step"],
                    "efficiency": alone["step"] / own["step"],
                }
            )
    return rows
