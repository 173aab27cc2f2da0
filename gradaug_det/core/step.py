"""One training step, from the full pass to the optimizer, for the hooks of both frameworks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradaug_det.core.detector import SlimmableDetector
from gradaug_det.core.dump import Dump, with_replay_hint
from gradaug_det.core.gradients import (
    EarlyGradients,
    average_gradients,
    check_gradients,
    current_autocast,
    overflow,
    sent_dtype,
)
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.processes import Meeting
from gradaug_det.core.regularizer import (
    Losses,
    SubNetworkLosses,
    narrowed,
    process_rank,
    sub_network_passes,
)
from gradaug_det.core.sampling import SubNetwork, sample_own_pass, sample_sub_networks
from gradaug_det.core.slimming import uncompiled
from gradaug_det.core.soft_targets import ForwardRecorder
from gradaug_det.errors import ConfigError, GradAugError, NonFiniteLossError

MOST_OVERFLOWS = 10
"""So many steps in a row may be left to float16's scaler before a training is called diverged: it
halves its scale at each of them."""


@dataclass
class Step:
    """A training step so far."""

    recorder: ForwardRecorder
    scope: ExitStack  # closed, it detaches everything from the detector
    own: SubNetwork  # the framework's own pass
    subs: list[SubNetwork]
    narrow: ExitStack = field(default_factory=ExitStack)  # the own pass's width
    batch: Any = None  # the own pass's, once there was one
    losses: Losses | None = None
    rng: Tensor = field(default_factory=torch.get_rng_state)  # the CPU's, before the own pass
    thread: int = field(default_factory=threading.get_ident)
    done: bool = False

    @property
    def averages(self) -> bool:
        """Returns whether there are gradients of which a DDP's own hooks learn nothing."""
        return bool(self.subs) or self.own.width < 1


class SubNetworkHook:
    """A framework's hook, but for when the framework calls it and where it keeps its numbers.

    Args:
        settings: those of :class:`gradaug_det.core.options.GradAugOptions`.

    Raises:
        ConfigError: a setting is unknown or not allowed.
    """

    # ---- the framework's part -----------------------------------------------------------------

    framework: str  # "detectron2" or "mmdet"
    first_iteration: int  # the number that the framework's log gives to the first step
    iteration: int  # the step, counted from 0
    encode: Callable[[Any], Any]  # a batch -> tensors and plain values
    image_names: Callable[[Any], list[Any]]  # a batch -> what readers find its images by
    config_text: Callable[[], str | None]  # None if the config has no file's form
    output_dir: Callable[[], str | None]  # None if the training has no folder
    count_skipped: Callable[[], int]  # adds one to a number that checkpoints keep; the sum

    def __init__(self, **settings: Any) -> None:
        with _named_after_the_hook():
            self.options = GradAugOptions.from_mapping(settings)
        self.network: SlimmableDetector | None = None  # while there is something to train
        self.results: list[SubNetworkLosses] = []  # of the last step

    # ---- a training ---------------------------------------------------------------------------

    def start(
        self,
        model: nn.Module,
        make_network: Callable[[nn.Module, GradAugOptions], SlimmableDetector],
        logger: logging.Logger,
        steps: float,
    ) -> None:
        """Begins a training of what the framework trains, wrapped for distribution or not, of that
        many steps.

        Raises:
            UnslimmableError: the detector's backbone cannot be slimmed.
            ConfigError: a setting does not fit the detector, or its wrapper does not.
        """
        self.model, self.logger = uncompiled(model), logger
        wrapped = isinstance(self.model, DistributedDataParallel)
        detector = uncompiled(self.model.module) if wrapped else self.model
        with _named_after_the_hook():
            network = make_network(detector, self.options)
        if getattr(self.model, "static_graph", False):
            raise ConfigError(
                "static_graph",
                "of DistributedDataParallel must be False with GradAugHook, got True: gradients "
                "are averaged once for all passes, so that activation checkpointing works "
                "without it",
            )
        self._sent_dtype = sent_dtype(self.model) if wrapped else None
        if compiled := _compiled_part(model):
            logger.warning(
                "GradAug: %s is compiled by torch.compile, and sub-networks have other shapes at "
                "every step: after a few of them it runs uncompiled, the full network too. Train "
                "without torch.compile",
                compiled,
            )
        options = self.options
        if options.start >= steps:
            logger.warning(
                "GradAug: `start` is %d, and the training ends after %d iterations: no step will "
                "have sub-networks",
                options.start,
                steps,
            )
        if options.passes == "alternating" and not (options.full_share or options.start):
            logger.warning(
                "GradAug: `full_share` is 0, so that nothing is trained at full width, at which "
                "evaluations during the training are made, and no BatchNorm that trains writes "
                "running statistics. Benchmark and export the detector at the widths %s",
                options.widths,
            )
        continuous = options.passes == "added" and not options.widths and options.min_width < 1
        if torch.backends.cudnn.benchmark and continuous and options.divisor == 1:
            logger.warning(
                "GradAug: torch.backends.cudnn.benchmark is on, and sub-networks have any width "
                "from %s to 1: every step has shapes that cuDNN tries all algorithms for. Set "
                "`widths` or `divisor`, or turn it off",
                options.min_width,
            )
        self.meeting, self._overflows = Meeting(), 0
        self.network = network

    def end(self) -> None:
        """Leaves the other processes, and forgets the detector."""
        if self.network is not None:
            self.meeting.close()
            self.network = None

    @contextmanager
    def step(self) -> Iterator[Step]:
        """Within the block: the detector's first training pass has its width, and is noted with its
        losses, soft targets and precision; DDP holds gradients back. Nothing stays attached to the
        detector."""
        network, iteration = self.network, self.iteration
        with ExitStack() as stack:
            recorder = stack.enter_context(network.recording())
            subs = sample_sub_networks(self.options, iteration)
            step = Step(recorder, stack, sample_own_pass(self.options, iteration), subs)
            stack.enter_context(step.narrow)

            def note(detector: nn.Module, args: tuple, kwargs: dict) -> None:
                batch = network.batch_of(args, kwargs) if step.batch is None else None
                if batch is not None:
                    step.batch = batch
                    network.autocast = current_autocast(next(detector.parameters()).device.type)
                    # Here, inside a DDP's forward pass: it has just sent out the whole buffers.
                    step.narrow.enter_context(narrowed(network, step.own))

            def keep(_detector: nn.Module, _args: tuple, output: Any) -> None:
                if step.batch is not None and step.losses is None:
                    terms = network.loss_terms(output).items()
                    step.losses = {name.replace("loss_", ""): loss.detach() for name, loss in terms}

            module = network.module
            stack.enter_context(module.register_forward_pre_hook(note, with_kwargs=True))
            if self.options.passes == "alternating":
                stack.enter_context(module.register_forward_hook(keep))
            if isinstance(self.model, DistributedDataParallel) and step.averages:
                # Gradients cross the network once for all passes.
                stack.enter_context(self.model.no_sync())
            try:
                yield step
            except BaseException:
                self.meeting.close()  # the other processes must not wait for this one
                raise

    def finish_step(
        self,
        step: Step,
        backward: Callable[[Tensor], Any],
        scaler: Any = None,
        *,
        last: bool = True,
    ) -> None:
        """Adds the sub-networks' gradients to those of the own pass, and averages them.

        Args:
            step: the own pass and its backward are done.
            backward: how the framework sends a loss backward.
            scaler: of the losses, if there is one.
            last: whether the optimizer steps next, and not after more iterations.

        Raises:
            NonFiniteLossError: a loss or a gradient is not finite, in whichever process, and the
                options do not say to skip it; names the file to replay.
        """
        if step.batch is None:
            raise GradAugError("the model was not called in training mode before backward")
        step.narrow.close()
        try:
            skipped = self._run(step, backward, scaler, last)
        except NonFiniteLossError as error:
            if not error.here:  # the process with the problem leaves the file
                raise
            raise with_replay_hint(error, self._dump(error, step), self.output_dir()) from None
        images = ", ".join(map(str, self.image_names(step.batch))) if skipped else ""
        step.scope.close()
        step.done, step.batch = True, None
        for what in skipped:
            self.logger.warning(
                "GradAug iter %d: skipped %s (images %s); %d so far",
                self.iteration + self.first_iteration,
                what,
                images,
                self.count_skipped(),
            )

    def log_step(self, totals: Iterable[float]) -> None:
        """Every ``log_period`` steps, logs widths, scales and the passes' sums of losses."""
        period = self.options.log_period
        if period and (self.iteration + 1) % period == 0:
            both = zip(self.results, totals, strict=True)
            line = "; ".join(result.describe(total) for result, total in both)
            number = self.iteration + self.first_iteration
            self.logger.info("GradAug iter %d: %s", number, line)

    def _run(
        self, step: Step, backward: Callable[[Tensor], Any], scaler: Any, last: bool
    ) -> list[str]:
        """Returns what was left out of the step, in words."""
        skip = self.options.nonfinite == "skip"
        scaled = scaler is not None and scaler.is_enabled()
        early = None
        if last and step.subs and isinstance(self.model, DistributedDataParallel):
            early = EarlyGradients(self.network.head_parameters(), self._sent_dtype)
        with self.network.after_heads(early.send if early else None):
            subs = sub_network_passes(
                self.network,
                self.network.on_device(step.batch) if step.subs else step.batch,
                step.recorder.stop(),
                step.subs,
                backward,
                nonfinite="skip" if skip else "note" if scaled else "raise",
                meeting=self.meeting,
            )
        own = [SubNetworkLosses(step.own, step.losses)] if step.losses else []
        self.results = [*own, *subs]
        problems = [r.problem for r in self.results if r.problem]
        skipped = [f"sub-network {r.sub.index}" for r in self.results if r.problem]
        if last and step.averages and isinstance(self.model, DistributedDataParallel):
            average_gradients(self.model, self.meeting, self._sent_dtype, early)
            # no_sync also held back the buffers that a DDP with broadcast_buffers sends out before
            # the next forward pass.
            self.model.require_forward_param_sync = True
        if problems and not skip:
            # A scaler looks at the gradients of the losses that went backward, and those are
            # finite: it must be made to skip the step in every process.
            self._overflows += 1
            if self._overflows == MOST_OVERFLOWS:
                first = problems[0]
                message = f"{first}, for the {MOST_OVERFLOWS}th time in a row"
                raise NonFiniteLossError(message, first.sub, first.losses, first.here)
            overflow(self.model)
            skipped = ["the step: a sub-network's loss"]
        else:
            self._overflows = 0
        # Averaged gradients are the same everywhere, and need no talk.
        meeting = None if last else self.meeting
        if not check_gradients(self.model, self.iteration, skip, scaler, meeting):
            skipped.append("the step: its gradient")
        elsewhere = next((f" ({p})" for p in problems if not p.here), "")
        return [f"{what} is not finite{elsewhere}" for what in skipped]

    def _dump(self, error: NonFiniteLossError, step: Step) -> Dump:
        return Dump(
            framework=self.framework,
            config=self.config_text(),
            iteration=self.iteration,
            rank=process_rank(),
            subs=step.subs,
            bad=error.sub.index if error.sub else None,
            options=vars(self.options),
            rng=step.rng,
            weights=self.network.module.state_dict(),
            batch=self.encode(step.batch),
            images=self.image_names(step.batch),
        )


@contextmanager
def _named_after_the_hook() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"GradAugHook.{error.key}", error.problem) from None


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


def _compiled_part(model: nn.Module) -> str:
    """Returns the first part of the model that torch.compile has compiled; empty without one."""
    for name, layer in model.named_modules():
        if hasattr(layer, "_orig_mod") or getattr(layer, "_compiled_call_impl", None) is not None:
            return name or type(layer).__name__
    return ""
