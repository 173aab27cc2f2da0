"""Moves the weights of a ResNet between frameworks: the same tensors under other names.

The table in ``naming.py`` says how each framework names the parts of a ResNet; the layout (blocks,
stem, shortcuts) is read from the tensors' names. ResNeXt and wide ResNets have the same names.
What no tensor tells is not checked here: where a bottleneck strides (1x1 or 3x3), and mean and std
of the input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from gradaug_det.errors import ConfigError, ZooError
from gradaug_det.utils.checkpoints import load_checkpoint
from gradaug_det.utils.files import atomic_path
from gradaug_det.utils.text import to_printable
from gradaug_det.zoo.backbone import read_backbone, save_backbone
from gradaug_det.zoo.info import SOURCES, BackboneInfo
from gradaug_det.zoo.naming import NAMINGS, Naming, check_order, find_naming

STAGES = (1, 2, 3, 4)
# Of detectors (Detectron2, MMDetection) and of MoCo's encoders.
_PREFIXES = ("", "backbone.bottom_up.", "backbone.", "encoder_q.", "base_encoder.")
_STATISTICS = ("running_mean", "running_var")
_LEAVES = ("weight", "bias", *_STATISTICS, "num_batches_tracked")


class _Layout(NamedTuple):
    """The properties of a ResNet that decide its tensors' names."""

    blocks: tuple[int, ...]  # of each of the four stages
    convolutions: int  # of a block: 2 (basic) or 3 (bottleneck)
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
    old, new = find_naming("source", source), find_naming("target", target)
    # Arguments are judged before the state: their errors name what to change.
    given_order = check_order("source_format", source_format or old.order)
    wanted_order = check_order("target_format", target_format or new.order)
    unable = [side.title for side in (old, new) if side.classifier is None]
    if classifier and unable:
        raise ConfigError("classifier", f"must be False: {unable[0]}'s ResNet has no classifier")
    state = _strip_wrapping(state, old)
    modules = _pair_modules(state, old, new)
    if problem := next(_list_problems(state, list(modules), classifier), None):
        raise _not_a_resnet(old, problem)
    if not classifier:
        modules[list(modules)[-1]] = ""  # no name: it is left out
    renamed = _rename(state, modules, new)
    result = {f"{prefix}{name}": torch.as_tensor(value) for name, value in renamed}
    # The stem comes first, and is all that sees colours.
    if given_order != wanted_order:
        first = next(iter(result))
        result[first] = result[first].flip(1)
    return result


def rename(state: Mapping[str, Any], source: str, target: str) -> dict[str, Any]:
    """Another framework's names for the entries of an incomplete state: gradients, shapes.

    Nothing but names changes, and it need not be a whole network; for weights see :func:`convert`.
    The classifier and ``num_batches_tracked`` are left out where the target has none.

    Raises:
        ConfigError: as :func:`convert` does.
        ZooError: a name is not one of the source's.
    """
    old, new = find_naming("source", source), find_naming("target", target)
    state = _strip_wrapping(state, old)
    modules = _pair_modules(state, old, new)
    for name in state:
        module, _, leaf = name.rpartition(".")
        if not module or module not in modules or leaf not in _LEAVES:
            raise _not_a_resnet(old, f"{to_printable(name)} is unknown")
    return dict(_rename(state, modules, new))


def _rename(
    state: Mapping[str, Any], modules: Mapping[str, str], target: Naming
) -> Iterator[tuple[str, Any]]:
    for module, renamed in modules.items():
        for leaf in _LEAVES:
            is_kept = renamed and (leaf != "num_batches_tracked" or target.counts_batches)
            if is_kept and f"{module}.{leaf}" in state:
                yield f"{renamed}.{leaf}", state[f"{module}.{leaf}"]


def convert_file(
    source: str | Path,
    out: str | Path,
    target: str,
    *,
    framework: str | None = None,
    source_format: str | None = None,
    target_format: str | None = None,
    classifier: bool = False,
    info: BackboneInfo | None = None,
) -> Path:
    """Write the weights in a file under another framework's names.

    Args:
        source: a backbone file, or any checkpoint (see ``load_checkpoint``).
        out: ``.safetensors``, or ``.pth`` for ``torch.save``'s format; for Detectron2 that is a
            dict which its checkpointer matches to any detector.
        target: one of TARGETS.
        framework: whose names the source has, one of SOURCES; a backbone file knows it itself.
        source_format, target_format, classifier: see :func:`convert`; a backbone file knows its
            own order.
        info: describes the result: writes a backbone file, ready for a zoo.

    Raises:
        ConfigError, ZooError: an argument is wrong, or the source is not what it should be.
    """
    source, out = Path(source), Path(out)
    if out.suffix not in (".safetensors", ".pth"):
        raise ConfigError("OUT", f"must end in .safetensors or .pth, got '{out.name}'")
    if info is not None:
        if target != "torchvision" or out.suffix != ".safetensors":
            raise ConfigError(
                "--info", "makes a backbone file: --to torchvision and an OUT in .safetensors"
            )
        target_format = target_format or info.channel_order
        if target_format != info.channel_order:
            raise ConfigError("--format", f"must be {info.channel_order}, as --info says")
    # A backbone file says itself whose names it has, and in which order its images were.
    if framework is not None:
        state = load_checkpoint(source)
    elif source.suffix == ".safetensors":
        try:
            state, described = read_backbone(source)
        except ZooError as error:
            raise ZooError(f"{error}; if it is a framework's, say whose with --from") from None
        framework = described.framework
        source_format = source_format or described.channel_order
    else:
        raise ConfigError(
            "--from",
            f"must name the framework whose checkpoint {source} is: {', '.join(SOURCES)} (only "
            "backbone files, .safetensors, know it themselves)",
        )
    weights = convert(
        state,
        framework,
        target,
        source_format=source_format,
        target_format=target_format,
        classifier=classifier,
    )
    if info is not None:
        return save_backbone(out, weights, info)
    # Tensors of a checkpoint may share memory, which safetensors refuses.
    weights = {name: tensor.contiguous().clone() for name, tensor in weights.items()}
    with atomic_path(out) as temporary:
        if out.suffix == ".safetensors":
            save_file(weights, temporary, metadata={"format": "pt"})
        else:
            torch.save(for_detectron2(weights) if target == "detectron2" else weights, temporary)
    return out


def for_detectron2(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """A checkpoint whose names Detectron2 matches by their ends: ``res2.0.conv1.weight`` fills
    ``backbone.bottom_up.res2...`` and ``backbone.res2...``."""
    return {"model": weights, "__author__": "gradaug_det", "matching_heuristics": True}


def _not_a_resnet(source: Naming, problem: str) -> ZooError:
    return ZooError(f"the checkpoint is not a ResNet of {source.title}: {problem}")


def _strip_wrapping(checkpoint: Mapping[str, Any], source: Naming) -> dict[str, Any]:
    """The backbone's tensors of a checkpoint, without what trainings put around them."""
    state = checkpoint
    for key in ("state_dict", "model"):
        if isinstance(state.get(key), Mapping):
            state = state[key]
    for name in state:
        if not isinstance(name, str):
            problem = f"its entries need names, one has {to_printable(name)}"
            raise _not_a_resnet(source, problem)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    # The stem's name tells under which prefix the backbone is; the bare one goes first.
    stems = [stem[0] for stem in (source.stem, source.deep_stem) if stem]
    for prefix in _PREFIXES:
        if any(f"{prefix}{stem}.weight" in state for stem in stems):
            return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
    first = f"its first entry is {to_printable(next(iter(state)))}" if state else "it is empty"
    raise _not_a_resnet(source, f"'{stems[0]}.weight' is missing; {first}")


def _pair_modules(state: Mapping[str, Any], old: Naming, new: Naming) -> dict[str, str]:
    """The source's name of each module with tensors, in the order of the network -> the target's
    ("" if it has none); the last one is the classifier.

    Raises:
        ConfigError: the target has no ResNet of this layout.
    """
    layout = _read_layout(state, old)
    for part, wanted in (("deep_stem", "deep stem"), ("pooled_shortcut", "pooled shortcut")):
        if getattr(layout, part) and getattr(new, part) is None:
            able = " and ".join(n.title for n in NAMINGS.values() if getattr(n, part))
            raise ConfigError(
                "target", f"cannot be {new.title}: its ResNet has no {wanted}; {able} have one"
            )
    # Networks of one layout have the same modules in the same order, whatever their names.
    return dict(zip(_list_modules(layout, old), _list_modules(layout, new), strict=True))


def _read_layout(state: Mapping[str, Any], source: Naming) -> _Layout:
    """The layout, by the names of the blocks' convolutions and shortcuts."""

    def has(stage: int, block: int, index: int, part: str) -> bool:
        return f"{_name_block(source, stage, block, index)}.{part}.weight" in state

    # Every block has a first convolution, a bottleneck has a third one.
    first, third = (_name_layer(source, n)[0] for n in (1, 3))
    blocks: list[int] = []
    index = 1  # of the block, over all stages
    for stage in STAGES:
        count = 0
        while has(stage, count, index, first):
            if "{index}" in source.block and count and has(stage, count, index, source.shortcut[0]):
                break  # blocks are counted through: a stage begins where the shape changes
            count, index = count + 1, index + 1
        if not count:
            name = f"{_name_block(source, stage, 0, index)}.{first}.weight"
            raise _not_a_resnet(source, f"'{name}' is missing")
        blocks.append(count)
    pooled, deep = source.pooled_shortcut, source.deep_stem
    return _Layout(
        tuple(blocks),
        3 if has(1, 0, 1, third) else 2,
        bool(deep) and f"{deep[0]}.weight" in state,
        bool(pooled) and has(2, 0, blocks[0] + 1, pooled[1]),
    )


def _list_modules(layout: _Layout, names: Naming) -> Iterator[str]:
    """Convolution, norm, convolution, norm, ..., classifier: the same places in any framework."""
    yield from names.deep_stem if layout.deep_stem else names.stem
    index = 0
    for stage, count in zip(STAGES, layout.blocks, strict=True):
        for block in range(count):
            index += 1
            parts = [p for n in range(layout.convolutions) for p in _name_layer(names, n + 1)]
            # Basic blocks of the first stage keep the stem's shape.
            if block == 0 and (stage > 1 or layout.convolutions == 3):
                parts += names.pooled_shortcut if layout.pooled_shortcut else names.shortcut
            yield from (f"{_name_block(names, stage, block, index)}.{part}" for part in parts)
    yield names.classifier or ""


def _name_block(names: Naming, stage: int, block: int, index: int) -> str:
    return names.block.format(stage=stage, res=stage + 1, block=block, index=index)


def _name_layer(names: Naming, n: int) -> tuple[str, ...]:
    return tuple(part.format(n=n, conv=3 * n - 3, norm=3 * n - 2) for part in names.body)


def _list_problems(state: Mapping[str, Any], modules: list[str], classifier: bool) -> Iterator[str]:
    """The tensors that are missing, unknown or of a wrong shape; who asks stops at the first."""
    *modules, last = modules
    # GroupNorm has no statistics; a network has one kind of norm.
    leaves = ("weight", "bias", *_STATISTICS)[: 4 if f"{modules[1]}.running_mean" in state else 2]
    layers = [
        [f"{conv}.weight", *(f"{norm}.{leaf}" for leaf in leaves)]
        for conv, norm in zip(modules[::2], modules[1::2], strict=True)
    ]
    head = [f"{last}.bias", f"{last}.weight"]
    needed = [*(head if classifier else []), *chain(*layers)]
    yield from (f"'{name}' is missing" for name in needed if name not in state)
    known = {*needed, *head, *(f"{norm}.num_batches_tracked" for norm in modules[1::2])}
    yield from (f"{to_printable(name)} is unknown" for name in state if name not in known)
    for name, value in state.items():
        if not _is_numbers(value):
            yield f"'{name}' is a {type(value).__name__}, not a tensor of numbers"
        elif isinstance(value, Tensor) and value.nbytes > value.untyped_storage().nbytes():
            # A stride of 0 makes a tensor of any size from one number.
            yield f"'{name}' repeats its numbers to shape {tuple(value.shape)}"
        elif name.endswith(".num_batches_tracked") and tuple(value.shape) not in ((), (1,)):
            yield f"'{name}' has shape {tuple(value.shape)}, it is one number"
    for first, *others in layers:
        shape = tuple(state[first].shape)
        if len(shape) != 4:
            yield f"'{first}' has shape {shape}, which is not a convolution's"
        for name in others:
            if tuple(state[name].shape) != shape[:1]:
                own = tuple(state[name].shape)
                yield f"'{name}' has shape {own} after a convolution with {shape[0]} channels"
    stem = layers[0][0]
    if state[stem].shape[1] != 3:
        yield f"'{stem}' takes {state[stem].shape[1]} channels, not 3"


def _is_numbers(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.layout is torch.strided and value.device.type != "meta"
    if not isinstance(value, np.ndarray | np.generic):
        return False
    return value.dtype.kind in "biuf" and value.dtype.isnative and value.dtype.itemsize <= 8
