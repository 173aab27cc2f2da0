"""The tensors of a detector whose backbone is as narrow as its sub-network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from gradaug_det.core.slimming import slim_plan
from gradaug_det.errors import UnslimmableError


def narrow_state(
    model: nn.Module, backbone: nn.Module, narrow: nn.Module, width: float
) -> dict[str, Tensor]:
    """Cuts the tensors of a detector to the shapes of the narrow one: the first of its channels.

    Args:
        model: the detector.
        backbone: the part of it that is slimmed.
        narrow: what the framework builds from the exported config.
        width: of the sub-network.

    Returns:
        Tensors of their own memory, by the names of ``narrow.state_dict()``.

    Raises:
        UnslimmableError: the two detectors differ in something else: names the first tensor.
    """
    plan = slim_plan(backbone)
    outputs = [plan.groups[group] for group in plan.outputs if group is not None]
    read = {group.channels: group.at(width) for group in outputs}
    prefix = next(name for name, module in model.named_modules() if module is backbone) + "."
    full = model.state_dict()
    built = {name: tuple(tensor.shape) for name, tensor in narrow.state_dict().items()}
    state = {}
    for name in built | full:
        given = tuple(full[name].shape) if name in full else None
        fitting = [given]
        if name.startswith(prefix) and given is not None:
            fitting = [plan.tensor_shape(name.removeprefix(prefix), full[name].shape, width)]
        elif given is not None and len(given) > 1 and name.startswith(("backbone.", "neck.")):
            # Or fewer input channels, where the layer reads the backbone's outputs. That these
            # are the first ones, in that order, is what largest_difference finds out: of what the
            # heads read, so that a head which reads the backbone itself cannot be cut.
            fitting.append((given[0], read.get(given[1]), *given[2:]))
        if name not in built or built[name] not in fitting:
            raise UnslimmableError(
                f"this detector cannot be exported: '{name}' is {_to_text(fitting[0])} in the "
                f"sub-network and {_to_text(built.get(name))} in what the framework builds from "
                "the narrow config; take another --width (1 always fits) or tell us the config"
            )
        # A slice shares the full tensor's memory, all of which torch.save would write.
        state[name] = full[name][tuple(map(slice, built[name]))].clone()
    return state


def _to_text(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else "x".join(map(str, shape)) or "a number"


def largest_difference(narrow: Callable[[], list[Tensor]], sliced: list[Tensor]) -> float:
    """Compares the narrow network's feature maps (N, C, H, W) with the sub-network's.

    It tells whether what reads the backbone's outputs could be cut: an ordinary convolution (an
    FPN's, for instance) finds the same, most other layers do not.

    Args:
        narrow: runs the narrow network.
        sliced: of the full detector at the sub-network's width.

    Returns:
        The largest difference, as a share of a map's largest value.

    Raises:
        UnslimmableError: they differ by more than rounding.
    """
    try:
        maps = narrow()
        found = "other shapes than"
        if [tuple(one.shape) for one in maps] == [tuple(other.shape) for other in sliced]:
            difference = max(
                float((one - other).abs().max() / other.abs().max().clamp(min=1e-12))
                for one, other in zip(maps, sliced, strict=True)
            )
            if difference < 1e-3:
                return difference
            found = f"differences of up to {difference:.1e} of their largest value from"
    except RuntimeError as error:
        found = f"an error ({error}) in place of"
    raise UnslimmableError(
        f"the narrow network's feature maps have {found} the sub-network's; nothing was written. "
        "What reads the backbone's outputs must be ordinary convolutions, as an FPN's are; if it "
        "is, please report this"
    )
