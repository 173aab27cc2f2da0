"""What the hooks of both frameworks do in a step, from the full pass to the optimizer."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradaug_det.core.detector import SlimmableDetector
from gradaug_det.core.gradients import check_gradients, current_autocast, overflow, synchronize
from gradaug_det.core.processes import Meeting
from gradaug_det.core.recording import ForwardRecorder
from gradaug_det.core.regularizer import SubNetworkLosses, sub_network_passes
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.core.slimming import uncompiled
from gradaug_det.errors import ConfigError, GradAugError, NonFiniteLossError

MOST_OVERFLOWS = 10
"""So many steps in a row may be left to float16's scaler before a training is called diverged: it
halves its scale at each of them."""


@dataclass
class Step:
    """What one training step has seen so far."""

    recorder: ForwardRecorder
    rng: Tensor = field(default_factory=torch.get_rng_state)
    """State of the CPU's generator before the full pass."""
    thread: int = field(default_factory=threading.get_ident)
    batch: Any = None
    noted: bool = False
    done: bool = False

    def take_batch(self) -> Any:
        """The full pass's batch, which is not kept here any longer."""
        if not self.noted:
            raise GradAugError("the model was not called in training mode before backward")
        batch, self.batch = self.batch, None
        return batch


@dataclass(frozen=True)
class Outcome:
    """What the sub-networks of a step gave, and what was left out of the step."""

    results: list[SubNetworkLosses]
    skipped: list[str]


class Training:
    """A training with sub-networks, in the hands of a framework's hook.

    Args:
        model: what the framework trains, wrapped for distribution or not.
        network: the detector in it.
        logger: the framework's.

    Raises:
        ConfigError: sub-networks cannot be trained in this wrapper.
    """

    def __init__(
        self, model: nn.Module, network: SlimmableDetector, logger: logging.Logger
    ) -> None:
        self.model, self.network, self.logger = uncompiled(model), network, logger
        if getattr(self.model, "static_graph", False):
            raise ConfigError(
                "static_graph",
                "of DistributedDataParallel must be False with GradAugHook, got True: gradients "
                "are averaged once, after all passes, so that activation checkpointing works "
                "without it",
            )
        if compiled := _compiled(model):
            logger.warning(
                "GradAug: %s is compiled by torch.compile, and sub-networks have other shapes at "
                "every step: after a few of them it runs uncompiled, the full network too. Train "
                "without torch.compile",
                compiled,
            )
        self.meeting = Meeting()
        self._overflows = 0

    def close(self) -> None:
        """Leaves the other processes."""
        self.meeting.close()

    @contextmanager
    def step(self) -> Iterator[Step]:
        """Within the block: notes the detector's first training pass, its soft targets and its
        precision; DDP holds gradients back. Nothing stays attached to the detector."""
        network = self.network
        with ExitStack() as stack:
            step = Step(stack.enter_context(network.recording()))

            def note(detector: nn.Module, args: tuple, kwargs: dict) -> None:
                batch = None if step.noted else network.batch_of(args, kwargs)
                if batch is not None:
                    step.batch, step.noted = batch, True
                    network.autocast = current_autocast(next(detector.parameters()).device.type)

            handle = network.module.register_forward_pre_hook(note, with_kwargs=True)
            stack.callback(handle.remove)
            if isinstance(self.model, DistributedDataParallel):
                # Gradients cross the network once, after all the passes.
                stack.enter_context(self.model.no_sync())
            try:
                yield step
            except BaseException:
                self.close()  # the other processes must not wait for this one
                raise

    def sub_networks(
        self,
        step: Step,
        batch: Any,
        subs: Sequence[SubNetwork],
        backward: Callable[[Tensor], Any],
        scaler: Any = None,
        *,
        last: bool = True,
    ) -> Outcome:
        """Adds the sub-networks' gradients to those of the full pass, and averages them.

        Args:
            step: of which the full pass and its backward are done.
            batch: of the step.
            subs: the step's sub-networks.
            backward: how the framework sends a loss backward.
            scaler: of the losses, if there is one.
            last: whether the optimizer steps next, and not after more iterations.

        Raises:
            NonFiniteLossError: a loss or a gradient is not finite, in whichever process, and the
                options do not say to skip it.
        """
        skip = self.network.options.nonfinite == "skip"
        scaled = scaler is not None and scaler.is_enabled()
        results = sub_network_passes(
            self.network,
            batch,
            step.recorder.take(),
            subs,
            backward,
            skip_nonfinite=skip or scaled,
            meeting=self.meeting,
        )
        problems = [r.problem for r in results if r.problem]
        skipped = [f"sub-network {r.sub.index}" for r in results if r.problem]
        if last:
            synchronize(self.model)
        if problems and not skip:
            # An overflow under a scaler, which must not depend on what it finds by itself.
            self._overflows += 1
            if self._overflows == MOST_OVERFLOWS:
                raise NonFiniteLossError(
                    f"{problems[0]}, for the {MOST_OVERFLOWS}th time in a row",
                    problems[0].sub,
                    problems[0].losses,
                    problems[0].here,
                )
            overflow(self.model)
            skipped = ["the step: a sub-network's loss"]
        else:
            self._overflows = 0
        iteration = subs[0].iteration
        meeting = None if last else self.meeting
        if not check_gradients(self.model, iteration, skip, scaler, meeting):
            skipped.append("the step: its gradient")
        step.done = True
        elsewhere = next((f" ({p})" for p in problems if not p.here), "")
        return Outcome(results, [f"{what} is not finite{elsewhere}" for what in skipped])


def check_alone(hooks: Iterable[Any], kind: type, once: str) -> None:
    """Raises ConfigError if more than one hook of the kind is among a training's hooks.

    Args:
        hooks: those with ``options`` count while these are active.
        kind: class of the hook.
        once: what can be done once only.
    """
    same = [hook for hook in hooks if isinstance(hook, kind)]
    count = sum(not hasattr(hook, "options") or hook.options.active for hook in same)
    if count > 1:
        raise ConfigError(
            kind.__name__,
            f"is registered {count} times, but {once}: register it in the config or in the script, "
            "not in both",
        )


def _compiled(model: nn.Module) -> str:
    """Name of the first part of the model that torch.compile has compiled; empty without one."""
    for name, layer in model.named_modules():
        if hasattr(layer, "_orig_mod") or getattr(layer, "_compiled_call_impl", None) is not None:
            return name or type(layer).__name__
    return ""
