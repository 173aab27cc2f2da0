"""Sub-networks by slicing: the same module, called with the first share of each layer's channels.

A :class:`SlimPlan` says which dimensions of which parameter shrink; :func:`at_width` overrides the
parameters by slices until the end of a ``with`` block. Nothing is rewritten or renamed, so
checkpoints stay those of the framework that built the module.

Source: GradAug, section 3.1 and the authors' implementation (channel counts, batch norm).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradaug_det.core.checks import check_integer, check_width
from gradaug_det.core.plan import SlimPlan, flatten_output
from gradaug_det.core.tracing import ExamplePass, example_image, trace_plan
from gradaug_det.errors import ConfigError, GradAugError, UnslimmableError

_PLAN = "_gradaug_slim_plan"
_WIDTH = "_gradaug_width"
_SET = "_gradaug_set_width"
_MISSING = object()


def slim_plan(module: nn.Module, example: ExamplePass | None = None) -> SlimPlan:
    """Returns the module's plan, derived (and checked) on first use and kept with the module.

    Args:
        example: derives the plan of a whole detector, anew.

    Raises:
        UnslimmableError: the module has a layer that cannot be cut to its first channels.
        GradAugError: a part of it is narrow already.
    """
    before = module.__dict__.get(_PLAN)
    plan = before if example is None else None
    if plan is None:
        for name, layer in module.named_modules():
            if (width := layer.__dict__.get(_WIDTH)) is not None:
                raise GradAugError(
                    f"cannot slim {type(module).__name__}: {name or 'it'} is at width {width:g} "
                    "already; set_width(..., 1) first"
                )
        with no_traces(module), Overrides() as overrides:
            for layer in module.modules():
                # Not module.eval(): frameworks override train() with side effects.
                overrides.set(vars(layer), "training", False)
                # torch.compile would trace the tiny image's pass, and hide its layers.
                if getattr(layer, "_compiled_call_impl", None) is not None:
                    overrides.set(vars(layer), "_compiled_call_impl", None)
            try:
                plan = module.__dict__[_PLAN] = trace_plan(module, example)
                _check_plan(module, plan, example)
            except BaseException as error:
                module.__dict__[_PLAN] = before
                if isinstance(error, GradAugError) or not isinstance(error, Exception):
                    raise
                raise UnslimmableError(
                    f"cannot slim {type(module).__name__}: in evaluation mode, a pass of a blank "
                    f"image stops with {type(error).__name__}: {error}"
                ) from error
    return plan


def uncompiled(module: nn.Module) -> nn.Module:
    """Returns the module that ``torch.compile`` was given, or the module itself."""
    return getattr(module, "_orig_mod", module)


def detector_backbone(detector: nn.Module) -> nn.Module:
    """Returns a detector's ``backbone``.

    Raises:
        UnslimmableError: it has none.
    """
    backbone = getattr(detector, "backbone", None)
    if not isinstance(backbone, nn.Module):
        raise UnslimmableError(
            f"{type(detector).__name__} has no attribute 'backbone', which GradAug slims"
        )
    return uncompiled(backbone)


def slim_detector(detector: nn.Module, example: ExamplePass) -> nn.Module:
    """Derives the plan of a whole detector: of its neck and heads too, up to their predictions.

    Raises:
        UnslimmableError: names the layer that cannot be slimmed.
        ConfigError: it has no part of a name to be kept whole.
    """
    parts = {name: part for name, part in detector.named_modules() if name}
    whole: list[str] = []
    for name in example.whole:
        if name not in parts:
            near = difflib.get_close_matches(name, parts) or [*parts][:3]
            raise ConfigError("keep_whole", f"has {name!r}, not a part as {', '.join(near)}")
        listed = isinstance(parts[name], nn.ModuleList)  # a cascade's stages, which run one by one
        whole += [f"{name}.{key}" for key in parts[name]._modules] if listed else [name]
    example = replace(example, whole=whole)
    try:
        slim_plan(detector, example)
    except UnslimmableError as error:
        raise UnslimmableError(
            f"{error}; slim the backbone alone, or name the layer, or what it is in, in keep_whole"
        ) from error
    return detector


@contextmanager
def at_width(
    module: nn.Module, width: float, norm: str = "auto", divisor: int = 1
) -> Iterator[nn.Module]:
    """Within the block, ``module`` is its sub-network of that width; full width again afterwards.

    Outputs are zero-padded to the full channel count, so what follows the module need not know:
    a convolution over padded channels equals the sliced one. ``backward`` adds to the first
    channels of the parameters' own ``.grad`` (hooks on parameters do not see it, and
    ``torch.autograd.grad`` does not find a way to them). Running statistics are never written:
    layers that would do so whatever they are told get copies.

    Args:
        module: a residual CNN; see :func:`slim_plan`.
        width: share of the channels that is kept, in (0, 1].
        norm: statistics that BatchNorm uses in the sub-network: ``batch`` (the batch's own: the
            authors' rule), ``frozen`` (the full network's running statistics, sliced), ``auto``
            (layer by layer what the full network does: ``batch`` in training mode, else
            ``frozen``). FrozenBatchNorm is always sliced, GroupNorm has no statistics.
        divisor: channels are kept in multiples of it; 1 is the authors' rule. Multiples of 16 are
            what convolutions compute anyway, and there are fewer shapes to prepare kernels for.

    Raises:
        ConfigError: the width, the policy or the divisor is not allowed.
        UnslimmableError: the module cannot be slimmed, or is already inside ``at_width``.

    Source: GradAug, section 3.1 ("sub-networks by width").
    """
    check_width(width)
    check_integer("divisor", divisor, low=1)
    plan = slim_plan(module)
    plan.check_norm(norm)
    if module.__dict__.get(_WIDTH) is not None:
        raise UnslimmableError("at_width cannot be nested: the module is already a sub-network")
    kept = plan.channels(width, divisor)
    layers = _layers_of(module, plan)
    with Overrides() as overrides:
        override = overrides.set
        override(module.__dict__, _WIDTH, width)
        for layer in layers.norms:
            use_batch = norm == "batch" or (norm == "auto" and layer["training"])
            override(layer, "training", use_batch)
            if use_batch:  # BatchNorm then reads and writes no running statistics
                override(layer, "track_running_stats", False)
        for layer, attribute, group, size in layers.counts:
            override(layer, attribute, kept[group] // size)
        slices = layers.slices_at(kept)
        for index, (table, key, dims, is_written) in enumerate(layers.tensors):
            whole = table.get(key)
            if whole is None:
                continue
            known, part = slices[index]
            if known is not whole or not _share_memory(whole, part):
                first = tuple([slice(None if group is None else kept[group]) for group in dims])
                part = _slice(whole, first)
                slices[index] = (whole, part)
            override(table, key, part.clone() if is_written else part)
        if plan.outputs:
            pad = partial(_pad_outputs, plan, kept)
            overrides.enter_context(module.register_forward_hook(pad))
        yield module


def set_width(module: nn.Module, width: float, norm: str = "frozen", divisor: int = 1) -> None:
    """Leaves ``module`` at a width, for inference, until the next call; 1 is full width again.

    No weight is copied, and a change takes some milliseconds. The width is the module's: a pass in
    another thread has it too, so change it between passes, and give a thread that needs a width of
    its own a copy of the module. Copy, move and save it at full width.

    Args:
        module, norm, divisor: see :func:`at_width`.
        width: share of the channels that is kept, in (0, 1].

    Raises:
        ConfigError, UnslimmableError: as :func:`at_width`; later, of ``state_dict`` until it is at
            full width again.
    """
    check_width(width)
    if (before := module.__dict__.pop(_SET, None)) is not None:
        before.close()
    if width < 1:
        with _SetWidth() as stack:
            stack.enter_context(at_width(module, width, norm, divisor))
            for part in module.modules():
                stack.enter_context(part.register_state_dict_pre_hook(_refuse_cut_state))
            module.__dict__[_SET] = stack.pop_all()


class _SetWidth(ExitStack):
    """What ends a width that was set. A copy or a pickle of the module would have it, too."""

    def __reduce__(self) -> None:
        _refuse_cut_state()


def _refuse_cut_state(*_: Any) -> None:
    raise UnslimmableError(
        "the module is at a width that was set: its state, a copy or a file would hold tensors "
        "that are cut; set_width(module, 1) first"
    )


@contextmanager
def no_traces(module: nn.Module) -> Iterator[None]:
    """Within the block, a forward pass in training mode leaves nothing behind in ``module``.

    A pass within the block sees what it has counted itself.
    """
    # Running statistics, class counts, moving averages and counters are the full network's alone,
    # whether a layer keeps them as buffers, as plain numbers or as tensors in plain attributes.
    with Overrides() as overrides:
        for layer in module.modules():
            own = vars(layer)
            # PyTorch's own layers count in buffers alone.
            for key in () if type(layer).__module__.startswith("torch.nn.") else list(own):
                if type(own[key]) in (bool, int, float):
                    overrides.set(own, key, own[key])
                elif isinstance(own[key], Tensor) and not own[key].requires_grad:
                    overrides.set(own, key, own[key].clone())
            for key, buffer in () if _is_frozen_norm(layer) else layer._buffers.items():
                if buffer is not None:
                    # A copy, not a later restore: autograd may need what the forward pass read.
                    overrides.set(layer._buffers, key, buffer.clone())
        yield


def _is_frozen_norm(layer: nn.Module) -> bool:
    # Not even the weight is trained: such a layer writes nothing, and there are many.
    return "weight" in layer._buffers and "running_mean" in layer._buffers


class Overrides(ExitStack):
    """Entries of dictionaries that are overridden until the end of a ``with`` block."""

    def __init__(self) -> None:
        super().__init__()
        # A list of its own: a callback for each of some thousand entries takes a millisecond.
        self._before: list[tuple[dict[str, Any], str, Any]] = []
        self.callback(self._restore)

    def set(self, table: dict[str, Any], key: str, value: Any) -> None:
        """Sets an entry, of ``vars(module)`` or ``module._parameters``, say, until the end."""
        self._before.append((table, key, table.get(key, _MISSING)))
        table[key] = value

    def _restore(self) -> None:
        for table, key, value in reversed(self._before):
            if value is _MISSING:
                table.pop(key, None)
            else:
                table[key] = value


@dataclass
class _Layers:
    """The layers of a plan, as dictionaries of theirs; and the slices of the widths used last.

    To find a ResNet-50's layers and to slice its tensors takes milliseconds, in every pass.
    """

    plan: SlimPlan
    modules: list[nn.Module]  # a layer may be replaced, by a synchronized norm, say
    norms: list[dict[str, Any]]
    counts: list[tuple[dict[str, Any], str, int, int]]
    # Table of parameters or buffers, key, groups, and whether the layer may write it.
    tensors: list[tuple[dict[str, Any], str, tuple[int | None, ...], bool]]
    slices: dict[tuple[int, ...], list[tuple[Tensor | None, Tensor | None]]]

    def slices_at(self, kept: tuple[int, ...]) -> list[tuple[Tensor | None, Tensor | None]]:
        """Returns each tensor with its slice, as far as they are known; to be filled."""
        if torch.is_inference_mode_enabled():  # whose tensors no training may use
            return [(None, None)] * len(self.tensors)
        slices = self.slices.pop(kept, None) or [(None, None)] * len(self.tensors)
        if len(self.slices) == _WIDTHS_KEPT:
            del self.slices[next(iter(self.slices))]
        self.slices[kept] = slices
        return slices


# Beside the modules, not in them: slices are not copied and saved with a module.
_LAYERS: WeakKeyDictionary[nn.Module, _Layers] = WeakKeyDictionary()
_WIDTHS_KEPT = 8


def _layers_of(module: nn.Module, plan: SlimPlan) -> _Layers:
    modules = [*filter(None, module._modules.values())]
    for layer in modules:  # which grows; module.modules() makes names, and takes ten times as long
        modules += filter(None, layer._modules.values())
    found = _LAYERS.get(module)
    if found is None or found.plan is not plan or found.modules != modules:
        named = dict(module.named_modules(remove_duplicate=False))
        tensors = {}  # a layer that is called in two places has two names
        for name, dims in plan.tensors.items():
            owner, _, key = name.rpartition(".")
            layer = named[owner]
            table = layer._parameters if key in layer._parameters else layer._buffers
            is_written = table is layer._buffers and not _is_frozen_norm(layer)
            tensors.setdefault((id(layer), key), (table, key, dims, is_written))
        counts = plan.counts.items()
        found = _LAYERS[module] = _Layers(
            plan,
            modules,
            [vars(named[name]) for name in plan.batch_norms],
            [(vars(named[name]), key, group, size) for (name, key), (group, size) in counts],
            [*tensors.values()],
            {},
        )
    return found


def _share_memory(whole: Tensor, part: Tensor) -> bool:
    # Not once weights are swapped by their `data`, or have moved, or are frozen meanwhile.
    return whole.data_ptr() == part.data_ptr() and whole.requires_grad == part.requires_grad


def _slice(tensor: Tensor, first: tuple[slice, ...]) -> Tensor:
    """Returns a view of the first channels, whose gradient is added to those of ``tensor.grad``."""
    # A leaf of its own. Autograd's slice would pad each gradient with zeros to full size; and since
    # all slices are made before the forward pass, it would do so after the last layer's backward,
    # with all of their gradients in memory until then.
    part = tensor.detach()[first]
    if tensor.requires_grad:
        part.requires_grad_()
        part.register_post_accumulate_grad_hook(partial(_pass_on_gradient, tensor, first))
    return part


@torch.no_grad()
def _pass_on_gradient(tensor: Tensor, first: tuple[slice, ...], part: Tensor) -> None:
    if tensor.grad is None:
        tensor.grad = torch.zeros_like(tensor)
    tensor.grad[first].add_(part.grad)
    part.grad = None  # freed now, not when the whole backward pass is done


def _pad_outputs(
    plan: SlimPlan, kept: Sequence[int], _module: nn.Module, _inputs: tuple, output: Any
) -> Any:
    """Zero-pads (N, c, ...) outputs to the full (N, C, ...)."""
    leaves, rebuild = flatten_output(output)
    padded = []
    for leaf, group in zip(leaves, plan.outputs, strict=True):
        if group is not None and leaf.shape[1] != kept[group]:
            problem = f"an output has {leaf.shape[1]} channels in place of {kept[group]}"
            raise UnslimmableError(f"a sub-network does not fit together: {problem}")
        missing = 0 if group is None else plan.groups[group].at(1) - kept[group]
        padded.append(F.pad(leaf, [0, 0] * (leaf.dim() - 2) + [0, missing]) if missing else leaf)
    return rebuild(padded)


@torch.no_grad()
def _check_plan(module: nn.Module, plan: SlimPlan, example: ExamplePass | None) -> None:
    """Runs sub-networks on a tiny image; raises UnslimmableError if one does not fit together."""
    run = example.run if example else lambda module: module(example_image(module))
    for width in (0.9, 0.5):
        try:
            with at_width(module, width, norm="frozen"):
                run(module)
        except RuntimeError as error:
            raise UnslimmableError(
                f"the sub-network of width {width} does not run: {error}"
            ) from error
