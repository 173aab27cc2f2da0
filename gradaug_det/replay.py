"""Running a step again: which loss is not finite, and which layer gave the first such number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradaug_det.core.dump import Dump, read_dump
from gradaug_det.core.regularizer import sub_network_passes
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.errors import GradAugError
from gradaug_det.frameworks import load_replay
from gradaug_det.utils.text import describe_error


@dataclass
class Pass:
    """What a pass of the step gives now.

    Args:
        name: of the pass, for readers.
        losses: by name.
        first: the layer that gave the first number that is not finite although it was given only
            finite ones; None if there is none.
        stopped: what the framework stopped it with; None if it came to its end.
    """

    name: str
    losses: dict[str, float]
    first: str | None = None
    stopped: str | None = None


@dataclass
class Replay:
    """A step that was run again.

    Args:
        dump: the step.
        passes: the full network's, then the sub-networks'.
        weights: names of the weights that are not finite already.
        gradients: names of the parameters whose gradient is not finite.
    """

    dump: Dump
    passes: list[Pass]
    weights: list[str] = field(default_factory=list)
    gradients: list[str] = field(default_factory=list)

    @property
    def again(self) -> bool:
        """Whether something is not finite this time too."""
        losses = (loss for one in self.passes for loss in one.losses.values())
        stopped = any(one.stopped for one in self.passes)
        bad = stopped or self.weights or self.gradients
        return bool(bad) or not all(map(math.isfinite, losses))

    @property
    def lines(self) -> list[str]:
        """The findings, for readers."""
        dump = self.dump
        lines = [
            f"iteration {dump.iteration}, rank {dump.rank}, images "
            f"{', '.join(map(str, dump.images))}",
            f"weights that are not finite: {_listed(self.weights)}",
        ]
        for one in self.passes:
            values = ", ".join(f"{name} {value:.5g}" for name, value in one.losses.items())
            lines.append(f"{one.name}: {one.stopped or values}")
            if one.first:
                lines.append(f"    first not finite in the layer {one.first}")
        return [*lines, f"gradients that are not finite: {_listed(self.gradients)}"]


def replay(
    path: str | Path, config: str | Path | None = None, trust_config: bool = False
) -> Replay:
    """Runs the step that a training left, on the CPU.

    Args:
        path: the file in the training's folder ``nonfinite``.
        config: the training's config file, where the step's file has none (LazyConfigs) or one
            that is Python (MMDetection's).
        trust_config: run the config in an MMDetection step's file.

    Raises:
        GradAugError: the file or the config cannot be used.
    """
    dump = read_dump(path)
    if config is None and dump.config is None:
        raise GradAugError(f"{path} names no config; pass the training's with --config")
    if config is None and dump.framework == "mmdet" and not trust_config:
        raise GradAugError(
            f"{path} is of MMDetection, and the config in it is Python that would run: pass the "
            "training's own with --config (its folder has a copy), or --trust-config if the file "
            "is from your own training"
        )
    adapter = load_replay(dump.framework)
    try:
        network, batch = adapter.restore(dump, config)
    except GradAugError:
        raise
    except Exception as error:  # the file, and a config that is a program, can be anything
        raise GradAugError(
            f"{path} cannot be run again ({describe_error(error)}); is {config or 'its config'} "
            "the training's?"
        ) from error
    module = network.module
    weights = [name for name, value in module.state_dict().items() if not _finite(value)]
    passes: list[Pass] = []
    torch.set_rng_state(dump.rng)
    with adapter.running():
        soft = None

        def full() -> dict[str, Tensor]:
            nonlocal soft
            losses, soft = network.full_pass(batch)
            sum(losses.values()).backward()
            return losses

        passes.append(_observed("full network", module, full))
        for sub in dump.subs if soft is not None else ():
            title = f"sub-network {sub.index} (width {sub.width:.4f}, {sub.transform})"

            def narrow(sub: SubNetwork = sub) -> dict[str, Tensor]:
                (one,) = sub_network_passes(network, batch, soft, [sub], skip_nonfinite=True)
                if not one.losses:
                    raise FloatingPointError("stopped at a number that is not finite")
                return one.losses

            passes.append(_observed(title, module, narrow))
    gradients = [n for n, p in module.named_parameters() if p.grad is not None]
    named = dict(module.named_parameters())
    return Replay(dump, passes, weights, [n for n in gradients if not _finite(named[n].grad)])


def _observed(name: str, module: nn.Module, run: Callable[[], dict[str, Tensor]]) -> Pass:
    with _first_bad(module) as first:
        try:
            losses, stopped = run(), None
        except FloatingPointError as error:
            losses, stopped = {}, str(error)
    numbers = {key: loss.item() for key, loss in losses.items()}
    return Pass(name, numbers, next(iter(first), None), stopped)


@contextmanager
def _first_bad(module: nn.Module) -> Iterator[list[str]]:
    """Within the block, notes the layers whose output is not finite though their input is."""
    names: list[str] = []

    def note(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple, output: Any) -> None:
            if all(map(_finite, _tensors(inputs))) and not all(map(_finite, _tensors(output))):
                names.append(name)

        return hook

    leaves = [(n, m) for n, m in module.named_modules() if not any(m.children())]
    handles = [layer.register_forward_hook(note(name)) for name, layer in leaves]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.detach().isfinite().all())


def _listed(names: list[str], most: int = 5) -> str:
    shown = ", ".join(names[:most]) or "none"
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
