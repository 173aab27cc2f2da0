"""The cost of a training on many GPUs, on paper: measured pieces put together by a simple model.

A step of GradAug is its passes one after the other, then one all-reduce of the gradients: they
cross the network once, and only those of the heads while a backward pass still runs. Images are
loaded meanwhile. Of a sub-network also counts the host's work around its pass and, if its width is
a new one, that each convolution has a new shape.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from torch import nn

from benchmarks.scaling.processes import step_times
from benchmarks.training.measure import mean_flops
from benchmarks.training.trainings import training_class
from benchmarks.training.workload import Variant, Workload
from gradaug_det.core.checks import check_integer, check_number
from gradaug_det.core.gradients import BUCKET_BYTES
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.slimming import at_width
from gradaug_det.d2.backbone import slimmable_part
from gradaug_det.d2.detector import GradAugDetector
from gradaug_det.reports.rendering import format_json, load_templates, write_files
from gradaug_det.utils.environment import describe_environment, machine_line

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parents[1] / "templates"

BATCH = 16
"""Images of a step in the 1x schedule, which is 90,000 steps long; larger batches have fewer."""
ITERATIONS = 90_000
SUBS = (1, 2, 3)
"""Numbers of sub-networks that are told of."""


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
        """Returns the time of ``size`` bytes: a ring within each node, then one between nodes.

        A ring of g sends 2 (g - 1) / g of the bytes, in 2 (g - 1) turns.
        """
        inside = min(self.gpus, self.gpus_per_node)
        nodes = math.ceil(self.gpus / self.gpus_per_node)
        turns = 2 * (inside - 1 + nodes - 1)
        within = 2 * (inside - 1) / inside * size / self.node_bandwidth
        between = 2 * (nodes - 1) / nodes * size / self.network_bandwidth
        return within + between + turns * messages * self.latency


class Training(NamedTuple):
    """What is trained; by default plainly."""

    compute_ratio: float = 1.0  # time of a step's passes over the plain step's
    subs: int = 0  # sub-networks of a step
    fixed: bool = False  # whether their widths are a fixed few


@dataclass(frozen=True)
class Pieces:
    """The pieces that the model puts together.

    Args:
        plain_seconds: of a plain step's passes on one GPU.
        images_per_gpu: of a step.
        gradient_bytes: that cross the network once a step.
        head_bytes: of these, those behind the neck.
        load_seconds: of one processor core to load and augment an image.
        loaders: processes that load images, for each GPU.
        host_seconds: to begin and end a width, ``fixed`` or ``continuous``.
        cold_convolutions: of a pass of new width; the gradients' are convolutions, too.
        cold_seconds: that each of them takes longer than one of a known shape.
    """

    plain_seconds: float
    images_per_gpu: int
    gradient_bytes: int
    head_bytes: int
    load_seconds: float
    loaders: int
    host_seconds: Mapping[str, float]
    cold_convolutions: int
    cold_seconds: float

    def around_passes(self, training: Training) -> float:
        """Returns the seconds of a step around its sub-networks' passes. Continuous widths are new
        ones, but for the smallest."""
        if training.fixed or not training.subs:
            return training.subs * self.host_seconds["fixed"]
        cold = (training.subs - 1) * self.cold_convolutions * self.cold_seconds
        return training.subs * self.host_seconds["continuous"] + cold

    @property
    def messages(self) -> int:
        """All-reduces of a step: one a bucket, and one of which parameters have a gradient."""
        return math.ceil(self.gradient_bytes / BUCKET_BYTES) + 1


def predict(pieces: Pieces, cluster: Cluster, training: Training) -> dict[str, Any]:
    """A step and the 1x schedule on a cluster.

    DistributedDataParallel hides the all-reduce of a plain step behind its backward pass, which is
    about two thirds of the step. Of GradAug's, the heads' share is hidden behind the last backward
    pass, on its way through the backbone, and the rest waits for its end.

    Returns:
        ``compute``, ``around``, ``data``, ``all_reduce`` (what is not hidden), ``step`` (seconds),
        ``bottleneck``, ``images_per_second``, ``hours`` (of the 1x schedule) and ``loaders``
        (processes for each GPU that would just do).
    """
    compute = pieces.plain_seconds * training.compute_ratio
    around = pieces.around_passes(training)
    all_reduce = cluster.all_reduce_seconds(pieces.gradient_bytes, pieces.messages)
    last_backward = compute / (training.subs + 1) * 2 / 3
    heads = cluster.all_reduce_seconds(pieces.head_bytes)
    all_reduce -= min(heads if training.subs else all_reduce, last_backward)
    loading = pieces.images_per_gpu * pieces.load_seconds
    parts = {"compute": compute, "around": around, "data": loading / pieces.loaders}
    parts["all_reduce"] = all_reduce
    step = max(compute + around + all_reduce, parts["data"])
    batch = pieces.images_per_gpu * cluster.gpus
    return {
        **parts,
        "step": step,
        "bottleneck": max(parts, key=parts.__getitem__),
        "images_per_second": batch / step,
        "hours": ITERATIONS * BATCH / batch * step / 3600,
        "loaders": math.ceil(loading / (compute + around + all_reduce)),
    }


def predictions(
    pieces: Pieces, clusters: Mapping[str, Cluster], trainings: Mapping[str, Training]
) -> list[dict[str, Any]]:
    """Rows of the table: every training on every cluster; ``ratio`` is to the plain step there,
    ``efficiency`` to the images a second of as many single GPUs."""
    rows = []
    for title, cluster in clusters.items():
        plain = predict(pieces, cluster, Training())
        for name, training in trainings.items():
            own = predict(pieces, cluster, training)
            alone = predict(pieces, Cluster(1), training)
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


def measure_scaling(
    configs: Path,
    size: tuple[int, int],
    iterations: int,
    steps: int,
    measure_loading: Callable[[], float],
) -> dict[str, Any]:
    """The pieces that this machine can measure, and the model's check on it.

    Args:
        configs: folder of the project's configs.
        size: (height, width) of a training image in pixels, for the FLOPs.
        iterations: whose sub-networks the FLOPs are counted of.
        steps: of each training in the check.
        measure_loading: gives the seconds in which one process loads an image.

    Returns:
        ``size``, ``iterations``, ``plain_gflops``, ``flops_ratios`` (GradAug's over a plain
        step's, by variant), ``gradient_bytes``, ``head_bytes``, ``load_seconds``, ``host_seconds``
        (see :func:`measure_host`), ``cold_convolutions`` of a pass, and ``check``: see
        :func:`check_on_two_processes`.
    """
    large = Workload("detectron2", configs, size, batch_size=1)
    plain = mean_flops(large, Variant(), 1)
    ratios = {}
    for variant in (Variant("labels", n) for n in SUBS):
        ratios[variant.name] = mean_flops(large, variant, iterations) / plain
        logger.info("FLOPs of %s: %.2f x plain", variant.name, ratios[variant.name])
    model = training_class("detectron2")(large, Variant()).model
    network = GradAugDetector(model, GradAugOptions(num_subnets=1, supervision="labels"))
    gradients = [p for p in model.parameters() if p.requires_grad]
    backbone = slimmable_part(model.backbone)
    layers = [layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d)]
    seconds = measure_loading()
    logger.info("an image is loaded in %.4f s", seconds)
    return {
        "size": list(size),
        "iterations": iterations,
        "plain_gflops": plain / 1e9,
        "flops_ratios": ratios,
        "gradient_bytes": sum(p.nbytes for p in gradients),
        "head_bytes": sum(p.nbytes for p in network.head_parameters()),
        "load_seconds": seconds,
        "host_seconds": measure_host(backbone),
        "cold_convolutions": sum(3 if layer.weight.requires_grad else 1 for layer in layers),
        "check": check_on_two_processes(configs, steps),
    }


def measure_host(backbone: nn.Module, times: int = 20) -> dict[str, float]:
    """Returns the seconds to begin and end a width: one of a ``fixed`` few, whose slices are kept,
    or, ``continuous``, one that there was not yet."""
    found = {}
    drawn = [0.9 + 0.09 * i / times for i in range(1, times)]
    for name, widths in (("fixed", [0.95] * times), ("continuous", drawn)):
        seconds = []
        for width in widths:
            start = time.perf_counter()
            with at_width(backbone, width, "frozen"):
                pass
            seconds.append(time.perf_counter() - start)
        found[name] = median(seconds)
    return found


def check_on_two_processes(configs: Path, steps: int) -> dict[str, Any]:
    """The model's step of two processes beside the measured one, on the mini config.

    What the model says: the step as two processes take it side by side that have nothing to tell
    each other, and the averaging of gradients as it is measured in itself.

    Returns:
        ``all_reduce`` (seconds), ``steps`` and ``rows``: by variant ``alone``, ``side by side``,
        ``together``, ``model`` (seconds) and ``error`` (of the model, relative).
    """
    small = Workload("detectron2", configs, (192, 256), batch_size=2, small=True)
    variants = [Variant(), Variant("labels", 2)]
    times = step_times(small, variants, steps)
    rows = {}
    for name in (v.name for v in variants):
        own = {mode: times[mode][name] for mode in times if mode != "all_reduce"}
        # DistributedDataParallel's all-reduce of the plain step is hidden behind its backward.
        exposed = 0.0 if name == "plain" else times["all_reduce"]
        model = own["side by side"] + exposed
        rows[name] = {**own, "model": model, "error": model / own["together"] - 1}
    return {"all_reduce": times["all_reduce"], "steps": steps, "rows": rows}


def write_scaling(
    folder: Path, measured: dict[str, Any], pieces: Pieces, clusters: Mapping[str, Cluster]
) -> Path:
    """Writes ``scaling.md`` and ``scaling.json`` into a folder; returns the first."""
    trainings = {"plain": Training()}
    for subs, (name, ratio) in zip(SUBS, measured["flops_ratios"].items(), strict=True):
        trainings[name] = Training(ratio, subs)
        trainings[f"{name}, fixed widths"] = Training(ratio, subs, fixed=True)
    content = {
        "measured": measured,
        "pieces": {**asdict(pieces), "messages": pieces.messages},
        "clusters": {title: asdict(cluster) for title, cluster in clusters.items()},
        "predictions": predictions(pieces, clusters, trainings),
        "environment": describe_environment(),
    }
    machine = machine_line(content["environment"])
    text = (
        load_templates(TEMPLATES).get_template("scaling.md.j2").render(machine=machine, **content)
    )
    write_files(folder, {"scaling.json": format_json(content), "scaling.md": text})
    return folder / "scaling.md"
