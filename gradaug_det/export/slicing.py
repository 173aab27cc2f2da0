"""The tensors of a detector whose backbone is as narrow as its sub-network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from gradaug_det.core.plan import flatten_output
from gradaug_det.core.slimming import slim_plan
from gradaug_det.errors import GradAugError, UnslimmableError


class _Readers(TorchFunctionMode):
    """Notes which weights are applied to the tensors in ``groups``, once there are any."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(p): n for n, p in model.named_parameters(remove_duplicate=False)}
        self.groups: dict[int, int | None] = {}
        self.alive: list[Tensor] = []  # an id is only unique while its tensor lives
        self.found: dict[str, int] = {}

    def returned(self, output: Any, groups: tuple[int | None, ...]) -> None:
        """The backbone has returned these tensors."""
        leaves, _ = flatten_output(output)
        self.alive += leaves
        self.groups.update((id(t), group) for t, group in zip(leaves, groups, strict=True))

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.groups:
            self._note(func, result, args, kwargs or {})
        return result

    def _note(self, func: Callable, result: Any, args: tuple, kwargs: dict) -> None:
        leaves, _ = flatten_output((args, kwargs))
        read = [t for t in leaves if isinstance(t, Tensor) and self.groups.get(id(t)) is not None]
        results, _ = flatten_output(result)
        if not read or not any(isinstance(leaf, Tensor) for leaf in results):
            return  # shapes, flags, ...
        name = getattr(func, "__name__", str(func))
        if func not in (F.conv2d, torch.conv2d):
            raise _not_understood(f"function '{name}' reads its outputs")
        weight = self.names.get(id(args[1]))
        if weight is None:
            raise _not_understood("a convolution reads its outputs whose weight is no parameter")
        if args[1].shape[1] != args[0].shape[1]:
            raise _not_understood(f"the grouped convolution of '{weight}' reads its outputs")
        self.found[weight] = self.groups[id(read[0])]


def _not_understood(what: str) -> UnslimmableError:
    return UnslimmableError(
        f"cannot narrow what follows the backbone: {what}, where only ordinary convolutions (an "
        "FPN's, for instance) can be cut"
    )


@torch.no_grad()
def find_readers(
    model: nn.Module, backbone: nn.Module, detect: Callable[[], Any]
) -> dict[str, int]:
    """The convolutions that read the backbone's outputs, found by watching a detection.

    Args:
        model: the detector.
        backbone: the part of it that is slimmed.
        detect: runs the detector on any image.

    Returns:
        Name of a weight in ``model`` -> index of the channel group (of the backbone's plan) that
        its input channels are.

    Raises:
        UnslimmableError: something else than a convolution reads an output.
    """
    readers = _Readers(model)
    outputs = slim_plan(backbone).outputs
    handle = backbone.register_forward_hook(lambda _m, _i, out: readers.returned(out, outputs))
    try:
        with readers:
            detect()
    finally:
        handle.remove()
    return readers.found


def narrow_state(
    model: nn.Module, backbone: nn.Module, readers: Mapping[str, int], width: float
) -> dict[str, Tensor]:
    """The detector's state with the first channels of its backbone alone.

    Args:
        model, backbone: see :func:`find_readers`, whose result ``readers`` is.
        width: of the sub-network.

    Returns:
        Tensors of their own memory, by the names of ``model.state_dict()``.
    """
    plan = slim_plan(backbone)
    prefix = next(name for name, module in model.named_modules() if module is backbone) + "."
    state = {}
    for name, tensor in model.state_dict().items():
        shape = tuple(tensor.shape)
        if name.startswith(prefix):
            shape = plan.tensor_shape(name.removeprefix(prefix), tensor.shape, width)
        elif name in readers:
            shape = (shape[0], plan.groups[readers[name]].at(width), *shape[2:])
        # A slice shares the full tensor's memory, all of which torch.save would write.
        state[name] = tensor[tuple(slice(size) for size in shape)].clone()
    return state


def load_narrow(model: nn.Module, state: Mapping[str, Tensor], config: str) -> None:
    """Loads the state into a detector that was built from the exported config.

    Raises:
        UnslimmableError: they do not fit: names the first tensor that does not.
    """
    built = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in [*built, *given]:
        if built.get(name) != given.get(name):
            raise UnslimmableError(
                f"this detector cannot be exported: '{name}' is {_shown(given.get(name))} in the "
                f"sub-network and {_shown(built.get(name))} in what the framework builds from "
                f"{config}; take another --width (1 always fits) or tell us the config"
            )
    model.load_state_dict(dict(state))


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "a number"


def check_same(narrow: list[Tensor], sliced: list[Tensor]) -> float:
    """The largest difference between two lists of feature maps (N, C, H, W), as a share.

    Raises:
        GradAugError: they differ by more than rounding.
    """
    differences = [
        float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))
        for one, other in zip(narrow, sliced, strict=True)
    ]
    if not max(differences) < 1e-3:
        raise GradAugError(
            f"the exported network's feature maps differ by up to {max(differences):.1e} of their "
            "largest value from the sub-network's; nothing was written. Please report this"
        )
    return max(differences)
