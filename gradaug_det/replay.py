"""Running a step again: which loss is not finite, and which layer gave the first such number."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from gradaug_det.core.dump import Dump
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.plan import flatten_output
from gradaug_det.core.regularizer import narrowed, sub_network_passes
from gradaug_det.core.sampling import sample_own_pass
from gradaug_det.errors import GradAugError
from gradaug_det.utils.text import describe_error


@dataclass
class Pass:
    """The outcome of a pass of the step now."""

    name: str
    losses: dict[str, float] = field(default_factory=dict)
    # The layer that gave the first number that is not finite although it was given finite ones.
    first: str | None = None
    stopped: str | None = None  # what the framework stopped it with


@dataclass
class Replay:
    """A step that was run again."""

    dump: Dump
    weights: list[str]  # names of those that are not finite already
    passes: list[Pass] = field(default_factory=list)  # the training's own comes first
    gradients: list[str] = field(default_factory=list)  # of parameters; those not finite

    @property
    def is_bad(self) -> bool:
        """Returns whether something is not finite this time too."""
        losses = [loss for one in self.passes for loss in one.losses.values()]
        bad = [*self.weights, *self.gradients, *(one for one in self.passes if one.stopped)]
        return bool(bad) or not all(map(math.isfinite, losses))

    @property
    def lines(self) -> list[str]:
        """Returns the findings, for readers."""
        dump, images = self.dump, ", ".join(map(str, self.dump.images))
        lines = [
            f"iteration {dump.iteration}, rank {dump.rank}, images {images}",
            f"weights that are not finite: {_list_some(self.weights)}",
        ]
        for one in self.passes:
            values = ", ".join(f"{name} {value:.5g}" for name, value in one.losses.items())
            lines.append(f"{one.name}: {one.stopped or values}")
            if one.first:
                lines.append(f"    first not finite in the layer {one.first}")
        return [*lines, f"gradients that are not finite: {_list_some(self.gradients)}"]


def replay(
    dump: Dump,
    adapter: ModuleType,
    config: str | Path | None = None,
    trust_config: bool = False,
) -> Replay:
    """Runs a step that a training left, on the CPU.

    Args:
        dump: the step.
        adapter: of its framework, see :func:`gradaug_det.frameworks.load_replay`.
        config: the training's config file, where the step has none (LazyConfigs) or one that is
            a program (MMDetection's).
        trust_config: run the program that is the step's config.

    Raises:
        GradAugError: the step or the config cannot be used.
    """
    if config is None and dump.config is None:
        raise GradAugError("the step's file holds no config; pass the training's with --config")
    if config is None and adapter.RUNS_CONFIG and not trust_config:
        raise GradAugError(
            "the step is of MMDetection, and the config in it is Python that would run: pass the "
            "training's own with --config (its folder has a copy), or --trust-config if the file "
            "is from your own training"
        )
    try:
        module = adapter.build(dump.config, config)
        module.load_state_dict(dump.weights)
        options = GradAugOptions.from_mapping(dump.options)
        network = adapter.network(module.train(), options)
        own = sample_own_pass(options, dump.iteration)
        batch = adapter.decode(dump.batch)
        torch.set_rng_state(dump.rng)  # the full pass samples and drops what it did
        found = Replay(dump, [name for name, w in module.state_dict().items() if not _is_finite(w)])
        soft = None
        with adapter.training_context():
            what = "full network" if own.width == 1 else f"narrow step (width {own.width:g})"
            with narrowed(network, own), _watch(module, found, what) as full:
                losses, soft = network.full_pass(batch)
                sum(losses.values()).backward()
                full.losses = {name: loss.item() for name, loss in losses.items()}
            for sub in dump.subs if soft is not None else ():
                name = f"sub-network {sub.index} (width {sub.width:.4f}, {sub.transform})"
                with _watch(module, found, name) as narrow:
                    # Not raised, because losses that are not finite are what there is to show.
                    (one,) = sub_network_passes(network, batch, soft, [sub], nonfinite="skip")
                    narrow.losses = {name: loss.item() for name, loss in one.losses.items()}
                    if not one.losses:
                        narrow.stopped = "stopped at a number that is not finite"
        found.gradients = [
            name
            for name, parameter in module.named_parameters()
            if parameter.grad is not None and not _is_finite(parameter.grad)
        ]
        return found
    except GradAugError:
        raise
    except Exception as error:  # the file, and a config that is a program, can be anything
        raise GradAugError(
            f"the step cannot be run again ({describe_error(error)}); is "
            f"{config or 'its config'} the training's?"
        ) from error


@contextmanager
def _watch(module: nn.Module, found: Replay, name: str) -> Iterator[Pass]:
    """Within the block, notes the first layer whose output is not finite though its input is."""
    one = Pass(name)
    found.passes.append(one)

    def note(layer: str, _: nn.Module, inputs: tuple, output: Any) -> None:
        if one.first is None and _is_finite(inputs) and not _is_finite(output):
            one.first = layer

    with ExitStack() as hooks:
        for name, layer in module.named_modules():
            if not any(layer.children()):
                hooks.enter_context(layer.register_forward_hook(partial(note, name)))
        try:
            yield one
        except FloatingPointError as error:  # Detectron2 stops at proposals that are not finite
            one.stopped = str(error)


def _is_finite(value: Any) -> bool:
    leaves, _ = flatten_output(value)
    return all(bool(leaf.isfinite().all()) for leaf in leaves if isinstance(leaf, Tensor))


def _list_some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
