"""The Detectron2 hook that adds GradAug to every training step."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gradaug_det.core.dump import Dump, with_replay_hint
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.regularizer import SubNetworkLosses, values_of
from gradaug_det.core.sampling import SubNetwork, sample_sub_networks
from gradaug_det.core.slimming import uncompiled
from gradaug_det.core.step import Outcome, Step, Training, check_alone
from gradaug_det.d2.batch import Batch
from gradaug_det.d2.checks import check_training
from gradaug_det.d2.config import gradaug_options
from gradaug_det.d2.detector import GradAugDetector
from gradaug_det.d2.preprocessing import check_preprocessing
from gradaug_det.d2.replay import config_text, encode, names
from gradaug_det.errors import GradAugError, NonFiniteLossError

logger = logging.getLogger("detectron2.gradaug")


class GradAugHook(HookBase):
    """Runs the sub-networks of Algorithm 1 between the full pass's backward and the optimizer.

    Register it with any trainer made of Detectron2's ``SimpleTrainer`` or ``AMPTrainer``
    (``DefaultTrainer`` is), in 0.6 or today's main branch. The training loop, the optimizer and
    the data loader stay as they are.

    Args: those of :class:`gradaug_det.core.options.GradAugOptions`.

    Raises:
        ConfigError: a setting is not allowed.

    Source: GradAug, Algorithm 1.
    """

    def __init__(
        self,
        num_subnets: int = GradAugOptions.num_subnets,
        min_width: float = GradAugOptions.min_width,
        scales: Sequence[float] = GradAugOptions.scales,
        flip_prob: float = GradAugOptions.flip_prob,
        block_survival: float = GradAugOptions.block_survival,
        divisor: int = GradAugOptions.divisor,
        supervision: str = GradAugOptions.supervision,
        soft_weight: float = GradAugOptions.soft_weight,
        labels_weight: float = GradAugOptions.labels_weight,
        soft_warmup: int = GradAugOptions.soft_warmup,
        subnet_norm: str = GradAugOptions.subnet_norm,
        seed: int = GradAugOptions.seed,
        log_period: int = GradAugOptions.log_period,
        channels_last: bool = GradAugOptions.channels_last,
        nonfinite: str = GradAugOptions.nonfinite,
        not_in_pixels: Sequence[str] = GradAugOptions.not_in_pixels,
    ) -> None:
        self.options = GradAugOptions(
            num_subnets=num_subnets,
            min_width=min_width,
            scales=tuple(scales) if not isinstance(scales, str) else scales,
            flip_prob=flip_prob,
            block_survival=block_survival,
            divisor=divisor,
            supervision=supervision,
            soft_weight=soft_weight,
            labels_weight=labels_weight,
            soft_warmup=soft_warmup,
            subnet_norm=subnet_norm,
            seed=seed,
            log_period=log_period,
            channels_last=channels_last,
            nonfinite=nonfinite,
            not_in_pixels=not_in_pixels,
        )
        self._cleanup = ExitStack()
        self._step_cleanup = ExitStack()
        self._step: Step | None = None
        self._skipped = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> GradAugHook | None:
        """The hook that ``cfg.GRADAUG`` asks for; None if it is not enabled.

        ``register_hooks`` drops a None, so what this returns can be registered as it is.
        """
        options = gradaug_options(cfg)
        return cls(**vars(options)) if cfg.GRADAUG.ENABLED else None

    # ---- Detectron2's hook methods ------------------------------------------------------------

    def before_train(self) -> None:
        """Finds the insertion point and checks that the detector can be trained this way.

        Raises:
            ConfigError: a setting does not fit the detector or the trainer, the hook is registered
                twice, or the trainer's config prepares images otherwise than the zoo's backbone
                needs.
        """
        if isinstance(cfg := getattr(self.trainer, "cfg", None), (CfgNode, DictConfig)):
            check_preprocessing(cfg)
        check_training(self.trainer)
        if not self.options.active:
            return
        check_alone(
            getattr(self.trainer, "_hooks", ()),
            GradAugHook,
            "a step can have its sub-networks once",
        )
        engine = _engine(self.trainer)
        detector = uncompiled(engine.model)
        if isinstance(detector, DistributedDataParallel):
            detector = uncompiled(detector.module)
        network = GradAugDetector(detector, self.options)
        self._training = Training(engine.model, network, logger)
        self._cleanup.callback(self._training.close)
        self._cleanup.callback(_call_after_backward(engine, self.run_sub_networks))

    def before_step(self) -> None:
        """Starts noting soft targets; under DDP, holds gradients back until all passes ran."""
        if self.options.active:
            self._step = self._step_cleanup.enter_context(self._training.step())

    def after_step(self) -> None:
        """Raises GradAugError if the trainer never gave the sub-networks their turn."""
        if self._step is not None and not self._step.done:
            raise GradAugError(
                f"{_engine(self.trainer).__class__.__name__}.run_step stepped without the "
                "sub-networks' gradients: it overrides SimpleTrainer.run_step. Call the hook's "
                "run_sub_networks() in it, between backward and optimizer.step"
            )

    def after_train(self) -> None:
        """Leaves model and trainer as they were, also after an exception."""
        self._step_cleanup.close()
        self._cleanup.close()
        self._step = None

    # ---- the step -----------------------------------------------------------------------------

    def run_sub_networks(self) -> None:
        """Adds the sub-networks' gradients. Call it between backward and ``optimizer.step``, once
        a step; the hook does so itself with Detectron2's trainers.

        Calls from another thread than the training's are ignored: Detectron2's main branch may
        write a step's metrics in one while the next step runs.

        Raises:
            NonFiniteLossError: a sub-network's loss or the gradient is not finite, and the options
                do not say to skip it; names the file to replay.
        """
        step = self._step
        if step is None or step.done or step.thread != threading.get_ident():
            return
        batch = step.take_batch()
        engine, iteration = _engine(self.trainer), self.trainer.iter
        subs = sample_sub_networks(self.options, iteration)
        scaler = getattr(engine, "grad_scaler", None)
        try:
            outcome = self._training.sub_networks(step, batch, subs, _backward(scaler), scaler)
        except NonFiniteLossError as error:
            if not error.here:
                raise
            dump = self._dump(error, batch, subs, step.rng)
            raise with_replay_hint(error, dump, self._output_dir()) from None
        self._step_cleanup.close()
        self._count_skipped(outcome, batch)
        self._log(outcome.results)

    def _count_skipped(self, outcome: Outcome, batch: Batch) -> None:
        for what in outcome.skipped:
            self._skipped += 1
            logger.warning(
                "GradAug iter %d: skipped %s (images %s); %d so far",
                self.trainer.iter,
                what,
                ", ".join(map(str, names(batch))),
                self._skipped,
            )
        if outcome.skipped and comm.is_main_process():
            self.trainer.storage.put_scalar("gradaug/skipped", self._skipped, smoothing_hint=False)

    def _dump(
        self, error: NonFiniteLossError, batch: Batch, subs: list[SubNetwork], rng: Tensor
    ) -> Dump:
        return Dump(
            framework="detectron2",
            config=config_text(getattr(self.trainer, "cfg", None)),
            iteration=self.trainer.iter,
            rank=comm.get_rank(),
            subs=subs,
            bad=error.sub.index if error.sub else None,
            options=vars(self.options),
            rng=rng,
            weights=self._training.network.module.state_dict(),
            batch=encode(batch),
            images=names(batch),
        )

    def _output_dir(self) -> str | None:
        """Of the trainer's config or its checkpointer; None for a trainer without either."""
        cfg = getattr(self.trainer, "cfg", None)
        if isinstance(cfg, CfgNode):
            return cfg.OUTPUT_DIR
        checkpointer = getattr(self.trainer, "checkpointer", None)
        return getattr(checkpointer, "save_dir", None) or None

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self._skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._skipped = state["skipped"]

    def _log(self, results: list[SubNetworkLosses]) -> None:
        """One ``gradaug/sub<i>/loss`` each in the console line, everything in the storage."""
        scalars = [f"sub{r.sub.index}/{name}" for r in results for name in r.losses]
        own = dict(zip(scalars, values_of(results), strict=True))
        gathered = self._training.meeting.gather(own)
        if not gathered:
            return
        storage = self.trainer.storage
        totals: dict[str, float] = {}
        for name in dict.fromkeys(name for one in gathered for name in one):
            # A process has none, or one that is not finite, of a sub-network that it skipped.
            values = [one[name] for one in gathered if math.isfinite(one.get(name, math.nan))]
            if not values:
                continue
            mean = sum(values) / len(values)
            sub = name.partition("/")[0]
            totals[sub] = totals.get(sub, 0.0) + mean
            # Without "loss" in its name a scalar stays out of the console line.
            storage.put_scalar(f"gradaug/{name}", mean)
        parts = []
        for result in results:
            sub, prefix = result.sub, f"gradaug/sub{result.sub.index}"
            total = totals.get(f"sub{sub.index}", math.nan)
            if math.isfinite(total):
                storage.put_scalar(f"{prefix}/loss", total)
            storage.put_scalar(f"{prefix}/width", sub.width)
            storage.put_scalar(f"{prefix}/scale", sub.transform.scale)
            parts.append(result.described(total))
        period = self.options.log_period
        if period and (self.trainer.iter + 1) % period == 0:
            logger.info("GradAug iter %d: %s", self.trainer.iter, "; ".join(parts))


def _engine(trainer: Any) -> Any:
    """The SimpleTrainer or AMPTrainer that runs the step: DefaultTrainer keeps one inside."""
    return getattr(trainer, "_trainer", trainer)


def _backward(scaler: Any) -> Callable[[Tensor], None]:
    """How the engine sends a loss backward: scaled where it trains in float16."""
    return Tensor.backward if scaler is None else lambda loss: scaler.scale(loss).backward()


def _call_after_backward(engine: Any, callback: Callable[[], None]) -> Callable[[], None]:
    """Has the engine call ``callback`` between backward and step; returns what undoes it.

    Detectron2 main calls ``engine.after_backward`` there (of the inner trainer, whose hooks a
    DefaultTrainer's are not), 0.6 calls ``engine._write_metrics``, in both of its trainers. Both
    are used where there are both: users' own ``run_step`` often has the second only. Hooks that
    look at gradients in ``after_backward`` see the sum of all passes; ``_write_metrics`` looks at
    the full network's loss first.
    """

    def wrapped(original: Callable, before: bool) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if before:
                callback()
            result = original(*args, **kwargs)
            if not before:
                callback()
            return result

        return call

    names = [name for name in ("after_backward", "_write_metrics") if hasattr(engine, name)]
    if not names:
        raise GradAugError(
            f"{engine.__class__.__name__} is not one of Detectron2's trainers: derive it from "
            "SimpleTrainer, or call the hook's run_sub_networks() between backward and step"
        )
    kept = {name: vars(engine).get(name) for name in names}
    for name in names:
        setattr(engine, name, wrapped(getattr(engine, name), before=name == "after_backward"))

    def undo() -> None:
        for name, own in kept.items():
            delattr(engine, name)
            if own is not None:
                setattr(engine, name, own)

    return undo
