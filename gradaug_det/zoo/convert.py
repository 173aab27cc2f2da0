"""Moves the weights of a ResNet between frameworks: the same tensors under other names.

The table in ``naming.py`` says how each framework names the parts of a ResNet; the layout (blocks,
stem, shortcuts) is read from the tensors' names. ResNeXt and wide ResNets have the same names.
What no tensor tells is not checked here: where a bottleneck strides (1x1 or 3x3), and mean and std
of the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradaug_det.errors import ConfigError, ZooError
from gradaug_det.utils.text import to_printable
from gradaug_det.zoo.naming import NAMINGS, Naming, channel_order, naming

STAGES = (1, 2, 3, 4)
_PREFIXES = ("", "backbone.bottom_up.", "backbone.", "encoder_q.", "base_encoder.")


@dataclass(frozen=True)
class Layout:
    """Of a ResNet, what decides its tensors' names.

    Args:
        blocks: of each of the four stages.
        convolutions: of a block: 2 (basic) or 3 (bottleneck).
        deep_stem, pooled_shortcut: see Naming.
    """

    blocks: tuple[int, ...]
    convolutions: int
    deep_stem: bool
    pooled_shortcut: bool


def convert(
    state: Mapping[str, Any],
    source: str,
    target: str,
    *,
    source_format: str | None = None,
    target_format: str | None = None,
    classifier: bool = False,
    prefix: str = "",
) -> dict[str, Tensor]:
    """The weights of a ResNet under another framework's names.

    Args:
        state: of a ResNet, ResNeXt or of a detector with one: tensors or numpy arrays; may be
            wrapped in ``state_dict`` or ``model`` and prefixed with ``module.``.
        source, target: "torchvision", "timm", "mmdet", "detectron2" or "authors" (the GradAug
            authors' code).
        source_format, target_format: "RGB" or "BGR", the channel order of the images; without it
            the framework's usual one (BGR in Detectron2). Where they differ, the input channels
            of the first convolution are reversed; all other tensors are passed on as they are.
        classifier: whether to keep the classifier's tensors.
        prefix: put before every name, e.g. ``backbone.bottom_up.`` for a Detectron2 detector.

    Returns:
        Name -> tensor, in the order of the network. Detectron2 gets no ``num_batches_tracked``.

    Raises:
        ConfigError: an argument is not one of those allowed, or the target has no such part.
        ZooError: the state is not a ResNet's of the source; names the first tensor that is
            missing, unknown or of a wrong shape.
    """
    old, new = naming("source", source), naming("target", target)
    orders = (
        channel_order("source_format", source_format or old.order),
        channel_order("target_format", target_format or new.order),
    )
    for side in (old, new):
        if classifier and side.classifier is None:
            problem = f"must be False: {side.title}'s ResNet has no classifier"
            raise ConfigError("classifier", problem)
    state = strip_wrapping(state, old)
    modules = _renaming(_layout(state, old), old, new)
    _check(state, list(modules), old, classifier)
    result = {}
    for module, renamed in modules.items():
        if module == old.classifier and not classifier:
            continue
        for leaf in _leaves(module, state):
            if leaf == "num_batches_tracked" and not new.counts_batches:
                continue
            result[f"{prefix}{renamed}.{leaf}"] = torch.as_tensor(state[f"{module}.{leaf}"])
    if orders[0] != orders[1]:
        first = f"{prefix}{next(iter(modules.values()))}.weight"
        result[first] = result[first].flip(1)
    return result


def authors_to_torchvision(state: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of the authors' ResNet under torchvision's names, the classifier included.

    Args:
        state: as the authors' training saves it: maybe in ``model`` or ``state_dict``, maybe with
            ``module.`` before the names.

    Raises:
        ZooError: a name is not one of the authors'.
    """
    return rename(state, "authors", "torchvision")


def rename(state: Mapping[str, Any], source: str, target: str) -> dict[str, Any]:
    """Another framework's names for the entries of an incomplete state: gradients, shapes.

    Nothing but names changes, and it need not be a whole network; for weights see :func:`convert`.
    The classifier and ``num_batches_tracked`` are left out where the target has none.

    Raises:
        ConfigError: as :func:`convert` does.
        ZooError: a name is not one of the source's.
    """
    old, new = naming("source", source), naming("target", target)
    state = strip_wrapping(state, old)
    modules = _renaming(_layout(state, old), old, new)
    result = {}
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        if module not in modules:
            raise ZooError(
                f"the checkpoint is not a ResNet of {old.title}: {to_printable(name)} is unknown"
            )
        if modules[module] and (leaf != "num_batches_tracked" or new.counts_batches):
            result[f"{modules[module]}.{leaf}"] = value
    return result


def strip_wrapping(checkpoint: Mapping[str, Any], source: Naming) -> dict[str, Any]:
    """The backbone's tensors of a checkpoint, without what trainings put around them.

    Raises:
        ZooError: there is no tensor of the stem under any known prefix.
    """
    state = checkpoint
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), Mapping):
            state = state[key]
    for name in state:
        if not isinstance(name, str):
            raise ZooError(
                f"the checkpoint is not a ResNet of {source.title}: its entries need names, one "
                f"has {to_printable(name)}"
            )
    state = {name.removeprefix("module."): value for name, value in state.items()}
    stems = [source.stem[0]] + ([source.deep_stem[0]] if source.deep_stem else [])
    for prefix in _PREFIXES:
        if any(f"{prefix}{stem}.weight" in state for stem in stems):
            return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    first = next(iter(state), None)
    raise ZooError(
        f"the checkpoint is not a ResNet of {source.title}: '{source.stem[0]}.weight' is missing"
        + ("; it is empty" if first is None else f"; its first entry is {to_printable(first)}")
    )


# ---- layout and names -------------------------------------------------------------------------


def _layout(state: Mapping[str, Any], source: Naming) -> Layout:
    """Reads the layout from the names of the blocks' first convolutions and shortcuts."""
    first, third = (_body(source, n)[0] for n in (1, 3))

    def has(stage: int, block: int, index: int, part: str) -> bool:
        name = _block(source, stage, block, index)
        return f"{name}.{part}.weight" in state

    blocks: list[int] = []
    index = 1
    for stage in STAGES:
        count = 0
        while has(stage, count, index, first):
            if "{index}" in source.block and count and has(stage, count, index, source.shortcut[0]):
                break  # blocks are counted through: a stage begins where the shape changes
            count, index = count + 1, index + 1
        if not count:
            name = f"{_block(source, stage, 0, index)}.{first}.weight"
            raise ZooError(f"the checkpoint is not a ResNet of {source.title}: '{name}' is missing")
        blocks.append(count)
    bottleneck = has(1, 0, 1, third)
    pooled = source.pooled_shortcut
    return Layout(
        tuple(blocks),
        3 if bottleneck else 2,
        bool(source.deep_stem) and f"{source.deep_stem[0]}.weight" in state,
        bool(pooled) and f"{_block(source, 2, 0, 0)}.{pooled[1]}.weight" in state,
    )


def _block(names: Naming, stage: int, block: int, index: int) -> str:
    return names.block.format(stage=stage, res=stage + 1, block=block, index=index)


def _body(names: Naming, n: int) -> tuple[str, str]:
    return tuple(p.format(n=n, conv=3 * n - 3, norm=3 * n - 2) for p in names.body)


def _modules(layout: Layout, names: Naming) -> Iterator[str]:
    """The modules with tensors, in the order of the network: convolution, norm, ..., classifier.

    Raises:
        ConfigError: the framework has no ResNet of this layout.
    """
    for part, wanted in (("deep_stem", "deep stem"), ("pooled_shortcut", "pooled shortcut")):
        if getattr(layout, part) and getattr(names, part) is None:
            able = " and ".join(n.title for n in NAMINGS.values() if getattr(n, part))
            raise ConfigError(
                "target", f"cannot be {names.title}: its ResNet has no {wanted}; {able} have one"
            )
    yield from names.deep_stem if layout.deep_stem else names.stem
    index = 0
    for stage, count in zip(STAGES, layout.blocks, strict=True):
        for block in range(count):
            index += 1
            prefix = _block(names, stage, block, index)
            for n in range(layout.convolutions):
                yield from (f"{prefix}.{part}" for part in _body(names, n + 1))
            # Basic blocks of the first stage keep the stem's shape.
            if block == 0 and (stage > 1 or layout.convolutions == 3):
                parts = names.pooled_shortcut if layout.pooled_shortcut else names.shortcut
                yield from (f"{prefix}.{part}" for part in parts)
    yield names.classifier or ""


def _renaming(layout: Layout, old: Naming, new: Naming) -> dict[str, str]:
    return dict(zip(_modules(layout, old), _modules(layout, new), strict=True))


# ---- checks -----------------------------------------------------------------------------------

_STATISTICS = ("running_mean", "running_var")


def _is_numbers(value: Any) -> bool:
    """Whether it is a tensor or an array that is there, with values that can be copied."""
    if isinstance(value, Tensor):
        return value.layout is torch.strided and value.device.type != "meta"
    if not isinstance(value, np.ndarray | np.generic):
        return False
    return value.dtype.kind in "biuf" and value.dtype.isnative and value.dtype.itemsize <= 8


def _leaves(module: str, state: Mapping[str, Any]) -> list[str]:
    leaves = ("weight", "bias", *_STATISTICS, "num_batches_tracked")
    return [leaf for leaf in leaves if f"{module}.{leaf}" in state]


def _check(state: Mapping[str, Any], modules: list[str], source: Naming, classifier: bool) -> None:
    """Raises ZooError for the first tensor that is missing, unknown or of a wrong shape."""
    what = f"the checkpoint is not a ResNet of {source.title}: "
    *modules, last = modules
    known = {f"{last}.{leaf}" for leaf in ("weight", "bias")}
    needed = [sorted(known)] if classifier else []
    # GroupNorm has no statistics; a network has one kind of norm.
    statistics = _STATISTICS if f"{modules[1]}.running_mean" in state else ()
    for conv, norm in zip(modules[::2], modules[1::2], strict=True):
        needed.append([f"{conv}.weight", *(f"{norm}.{x}" for x in ("weight", "bias", *statistics))])
        known |= {*needed[-1], f"{norm}.num_batches_tracked"}
    for names in needed:
        for name in names:
            if name not in state:
                raise ZooError(f"{what}'{name}' is missing")
    unknown = next((name for name in state if name not in known), None)
    if unknown is not None:
        raise ZooError(f"{what}{to_printable(unknown)} is unknown")
    for name, value in state.items():
        if not _is_numbers(value):
            raise ZooError(f"{what}'{name}' is a {type(value).__name__}, not a tensor of numbers")
        if isinstance(value, Tensor) and value.nbytes > value.untyped_storage().nbytes():
            # A stride of 0 makes a tensor of any size from one number.
            raise ZooError(f"{what}'{name}' repeats its numbers to shape {tuple(value.shape)}")
        if name.endswith(".num_batches_tracked") and tuple(value.shape) not in ((), (1,)):
            raise ZooError(f"{what}'{name}' has shape {tuple(value.shape)}, it is one number")
    for first, *others in needed[int(classifier) :]:
        shape = tuple(state[first].shape)
        if len(shape) != 4:
            raise ZooError(f"{what}'{first}' has shape {shape}, which is not a convolution's")
        for name in others:
            if tuple(state[name].shape) != shape[:1]:
                raise ZooError(
                    f"{what}'{name}' has shape {tuple(state[name].shape)} after a convolution "
                    f"with {shape[0]} channels"
                )
    channels = state[f"{modules[0]}.weight"].shape[1]
    if channels != 3:
        raise ZooError(f"{what}'{modules[0]}.weight' takes {channels} channels, not 3")
