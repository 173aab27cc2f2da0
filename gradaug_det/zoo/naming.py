"""How each framework names the parts of a ResNet: the one table that the converters use."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gradaug_det.errors import ConfigError


@dataclass(frozen=True)
class Naming:
    """How a framework names the modules of a ResNet.

    Args:
        title: the framework, in messages.
        order: "RGB" or "BGR", the usual channel order of its images.
        stem: convolution and norm of a 7x7 stem.
        block: ``{stage}`` is 1 to 4 (``{res}`` one more), ``{block}`` counts in the stage from 0,
            ``{index}`` over all stages from 1.
        body: in a block, the names of the i-th convolution and norm: ``{n}`` counts from 1,
            ``{conv}`` and ``{norm}`` are places in one sequence of convolution, norm and ReLU.
        shortcut: in a block, convolution and norm of the shortcut.
        classifier: None if the framework's ResNet has none.
        deep_stem: three convolutions, each before its norm; None if there is no such stem.
        pooled_shortcut: as ``shortcut`` after an average pooling; None if there is none.
        counts_batches: whether BatchNorm's ``num_batches_tracked`` are kept.
    """

    title: str
    order: str
    stem: tuple[str, str]
    block: str
    body: tuple[str, str]
    shortcut: tuple[str, str]
    classifier: str | None
    deep_stem: tuple[str, ...] | None = None
    pooled_shortcut: tuple[str, str] | None = None
    counts_batches: bool = True


_TORCHVISION = Naming(
    "torchvision",
    "RGB",
    stem=("conv1", "bn1"),
    block="layer{stage}.{block}",
    body=("conv{n}", "bn{n}"),
    shortcut=("downsample.0", "downsample.1"),
    classifier="fc",
)
_RESNET_D = replace(_TORCHVISION, pooled_shortcut=("downsample.1", "downsample.2"))
NAMINGS = {
    "torchvision": _TORCHVISION,
    "timm": replace(
        _RESNET_D,
        title="timm",
        deep_stem=("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1"),
    ),
    "mmdet": replace(
        _RESNET_D,
        title="MMDetection",
        classifier=None,
        deep_stem=("stem.0", "stem.1", "stem.3", "stem.4", "stem.6", "stem.7"),
    ),
    "detectron2": Naming(
        "Detectron2",
        "BGR",
        stem=("stem.conv1", "stem.conv1.norm"),
        block="res{res}.{block}",
        body=("conv{n}", "conv{n}.norm"),
        shortcut=("shortcut", "shortcut.norm"),
        classifier="linear",
        counts_batches=False,
    ),
    # The GradAug authors' models/resnet_randwidth.py.
    "authors": Naming(
        "the authors' code",
        "RGB",
        stem=("features.0.0", "features.0.1"),
        block="features.{index}",
        body=("body.{conv}", "body.{norm}"),
        shortcut=("shortcut.0", "shortcut.1"),
        classifier="classifier.0",
    ),
}


def find_naming(key: str, framework: str) -> Naming:
    """The naming of a framework; raises ConfigError, which names ``key``, for an unknown one."""
    if framework not in NAMINGS:
        raise ConfigError(key, f"must be one of {', '.join(NAMINGS)}, got {framework!r}")
    return NAMINGS[framework]


def check_order(key: str, order: str) -> str:
    """``order`` if it is "RGB" or "BGR"; raises ConfigError, which names ``key``, if not."""
    if order not in ("RGB", "BGR"):
        raise ConfigError(key, f"must be RGB or BGR, got {order!r}")
    return order
