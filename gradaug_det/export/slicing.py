"""The tensors of a detector that is as narrow as its sub-network, and what its layers find."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn

from gradaug_det.core.slimming import slim_plan
from gradaug_det.errors import UnslimmableError


def narrow_state(
    model: nn.Module, slimmed: nn.Module, narrow: nn.Module, width: float, divisor: int = 1
) -> dict[str, Tensor]:
    """Cuts the tensors of a detector to the shapes of the narrow one: the first of its channels.

    Args:
        model: the detector.
        slimmed: the part of it that is slimmed, or all of it.
        narrow: what the framework builds from the exported config.
        width, divisor: of the sub-network.

    Returns:
        Tensors of their own memory, by the names of ``narrow.state_dict()``.

    Raises:
        UnslimmableError: the two detectors differ in something else: names the first tensor.
    """
    plan = slim_plan(slimmed)
    outputs = [plan.groups[group] for group in plan.outputs if group is not None]
    read = {group.channels: group.at(width, divisor) for group in outputs}
    name = next(name for name, module in model.named_modules() if module is slimmed)
    prefix = f"{name}." if name else ""
    full = model.state_dict()
    built = {name: tuple(tensor.shape) for name, tensor in narrow.state_dict().items()}
    state = {}
    for name in built | full:
        given = tuple(full[name].shape) if name in full else None
        fitting = [given]
        if name.startswith(prefix) and given is not None:
            part = name.removeprefix(prefix)
            fitting = [plan.tensor_shape(part, full[name].shape, width, divisor)]
        elif given is not None and len(given) > 1 and name.startswith(("backbone.", "neck.")):
            # Or fewer input channels, where the layer reads the backbone's outputs. That these
            # are the first ones, in that order, is what largest_difference finds out.
            fitting.append((given[0], read.get(given[1]), *given[2:]))
        if name not in built or built[name] not in fitting:
            raise UnslimmableError(
                f"this detector cannot be exported: '{name}' is {_to_text(fitting[0])} in the "
                f"sub-network and {_to_text(built.get(name))} in what the framework builds from "
                "the narrow config; take another --width (1 always fits), train without "
                "keep_whole, or tell us the config"
            )
        # A slice shares the full tensor's memory, all of which torch.save would write.
        state[name] = full[name][tuple(map(slice, built[name]))].clone()
    return state


def _to_text(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "a number"


def layer_outputs(model: nn.Module, run: Callable[[], None]) -> dict[str, Tensor]:
    """Returns the tensor that each layer with parameters gives when it is first called, by the
    layer's name.

    Args:
        run: runs the model.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, __: tuple, output: Any) -> None:
        if isinstance(output, Tensor):
            found.setdefault(name, output)

    with ExitStack() as hooks:
        for name, layer in model.named_modules():
            if any(True for _ in layer.parameters(recurse=False)):
                hooks.enter_context(layer.register_forward_hook(partial(keep, name)))
        run()
    return found


def largest_difference(narrow: Callable[[], dict[str, Tensor]], sliced: dict[str, Tensor]) -> float:
    """Compares what the narrow network's layers find with what the sub-network's do.

    It tells whether all that reads narrow maps could be cut: an ordinary convolution (an FPN's,
    for instance) finds the same, most other layers do not.

    Args:
        narrow: runs the narrow network.
        sliced: of the full detector at the sub-network's width.

    Returns:
        The largest difference, as a share of an output's largest value.

    Raises:
        UnslimmableError: they differ by more than rounding: names the first layer that does.
    """
    largest = 0.0
    try:
        outputs = narrow()
    except RuntimeError as error:
        raise UnslimmableError(_REFUSED.format(f"stops with an error ({error})")) from None
    for name, expected in sliced.items():
        if not expected.isfinite().all():
            raise UnslimmableError(
                f"the detector finds numbers that are not finite at '{name}', from noise: its "
                "weights may hold some; nothing was written"
            )
        found = outputs.get(name)
        if found is None or found.shape != expected.shape:
            shapes = [_to_text(None if x is None else tuple(x.shape)) for x in (found, expected)]
            finds = f"finds {shapes[0]} at '{name}' where the sub-network finds {shapes[1]}"
            raise UnslimmableError(_REFUSED.format(finds))
        if not expected.numel():
            continue
        scale = expected.abs().max().clamp(min=1e-12)
        difference = float((found - expected).abs().max() / scale)
        if not difference < 1e-3:
            finds = f"differs at '{name}' by up to {difference:.1e} of the largest value"
            raise UnslimmableError(_REFUSED.format(finds))
        largest = max(largest, difference)
    return largest


_REFUSED = (
    "the narrow network {}; nothing was written. What reads narrow maps must be ordinary "
    "convolutions and linear layers, as an FPN's are; if it is, please report this"
)
