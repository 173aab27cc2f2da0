"""How each framework names the parts of a ResNet: the one table that the converters use."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from gradaug_det.errors import ConfigError


@dataclass(frozen=True)
class Naming:
    """How a framework names the modules of a ResNet; ``naming.json`` has one of each.

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
    stem: list[str]
    block: str
    body: list[str]
    shortcut: list[str]
    classifier: str | None
    deep_stem: list[str] | None
    pooled_shortcut: list[str] | None
    counts_batches: bool


_TABLE = Path(__file__).with_suffix(".json").read_text("utf-8")
# The authors' are those of their models/resnet_randwidth.py.
NAMINGS = {name: Naming(**fields) for name, fields in json.loads(_TABLE).items()}


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
