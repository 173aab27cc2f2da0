"""The Detectron2 hook that adds GradAug to every training step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradaug_det.core.engine import average_gradients, check_gradients, current_autocast
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.regularizer import SubNetworkLosses, sub_network_passes
from gradaug_det.core.sampling import SubNetwork
from gradaug_det.d2.batch import Batch
from gradaug_det.d2.checks import check_training
from gradaug_det.d2.config import gradaug_options
from gradaug_det.d2.detector import GradAugDetector
from gradaug_det.d2.preprocessing import check_preprocessing
from gradaug_det.d2.replay import config_text, encode, names
from gradaug_det.errors import GradAugError, NonFiniteLossError
from gradaug_det.replay.dump import Dump, explained

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
        self._step = ExitStack()
        self._batch: Any = None
        self._autocast: AbstractContextManager = nullcontext()
        self._done = True
        self._rng: Tensor | None = None
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
            ConfigError: a setting does not fit the detector, or the trainer's config prepares
                images otherwise than the zoo's backbone needs.
        """
        if isinstance(cfg := getattr(self.trainer, "cfg", None), (CfgNode, DictConfig)):
            check_preprocessing(cfg)
        check_training(self.trainer)
        if not self.options.active:
            return
        engine = _engine(self.trainer)
        self._model = engine.model
        detector = engine.model
        if isinstance(detector, DistributedDataParallel):
            detector = detector.module
        self._network = GradAugDetector(detector, self.options)
        self._cleanup.callback(self._network.recorder.close)
        self._cleanup.callback(detector.register_forward_pre_hook(self._note_batch).remove)
        self._cleanup.callback(_call_after_backward(engine, self.run_sub_networks))

    def before_step(self) -> None:
        """Starts noting soft targets; under DDP, holds gradients back until all passes ran."""
        if not self.options.active:
            return
        self._done, self._batch = False, None
        self._rng = torch.get_rng_state()
        self._network.recorder.start()
        if isinstance(self._model, DistributedDataParallel):
            self._step.enter_context(self._model.no_sync())

    def after_step(self) -> None:
        """Raises GradAugError if the trainer never gave the sub-networks their turn."""
        if not self._done:
            raise GradAugError(
                f"{_engine(self.trainer).__class__.__name__}.run_step stepped without the "
                "sub-networks' gradients: it overrides SimpleTrainer.run_step. Call the hook's "
                "run_sub_networks() in it, between backward and optimizer.step"
            )

    def after_train(self) -> None:
        """Leaves model and trainer as they were, also after an exception."""
        self._step.close()
        self._cleanup.close()
        self._batch = None

    # ---- the step -----------------------------------------------------------------------------

    def _note_batch(self, detector: nn.Module, args: tuple) -> None:
        if not self._done and self._batch is None and detector.training:
            self._batch = args[0]
            self._autocast = current_autocast(next(detector.parameters()).device.type)

    def run_sub_networks(self) -> None:
        """Adds the sub-networks' gradients. Call it between backward and ``optimizer.step``, once
        a step; the hook does so itself with Detectron2's trainers.

        Raises:
            NonFiniteLossError: a sub-network's loss or the gradient is not finite, and the options
                do not say to skip it; names the file to replay.
        """
        if self._done or not self.options.active:
            return
        if self._batch is None:
            raise GradAugError("the model was not called in training mode before backward")
        engine = _engine(self.trainer)
        subs = self.options.sampler.sample(self.trainer.iter)
        calls, batch, self._batch = self._network.recorder.take(), self._batch, None
        skip = self.options.nonfinite == "skip"
        try:
            with self._autocast:
                results = sub_network_passes(
                    self._network, batch, calls, subs, _backward(engine), skip_nonfinite=skip
                )
            self._step.close()
            if isinstance(self._model, DistributedDataParallel):
                average_gradients(self._model)
                # no_sync also held back the buffers that a DDP with broadcast_buffers sends out.
                self._model.require_forward_param_sync = True
            scaler = getattr(engine, "grad_scaler", None)
            whole = check_gradients(self._model, self.trainer.iter, skip, scaler)
        except NonFiniteLossError as error:
            raise explained(error, self._dump(error, batch, subs), self._output_dir()) from None
        self._done = True
        self._count_skipped(results, whole, batch)
        self._log(results)

    def _count_skipped(self, results: list[SubNetworkLosses], whole: bool, batch: Batch) -> None:
        skipped = [f"sub-network {r.sub.index}" for r in results if r.skipped]
        skipped += [] if whole else ["the step, whose gradient"]
        for what in skipped:
            self._skipped += 1
            logger.warning(
                "GradAug iter %d: skipped %s is not finite (images %s); %d so far",
                self.trainer.iter,
                what,
                ", ".join(map(str, names(batch))),
                self._skipped,
            )
        if skipped and comm.is_main_process():
            self.trainer.storage.put_scalar("gradaug/skipped", self._skipped, smoothing_hint=False)

    def _dump(self, error: NonFiniteLossError, batch: Batch, subs: list[SubNetwork]) -> Dump:
        return Dump(
            framework="detectron2",
            config=config_text(getattr(self.trainer, "cfg", None)),
            iteration=self.trainer.iter,
            rank=comm.get_rank(),
            subs=subs,
            bad=error.sub.index if error.sub else None,
            options=vars(self.options),
            rng=self._rng,
            weights=self._network.module.state_dict(),
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
        numbers = [loss.float() for r in results for loss in r.losses.values()]
        own = dict(zip(scalars, torch.stack(numbers).tolist(), strict=True)) if numbers else {}
        gathered = comm.gather(own)
        if not comm.is_main_process():
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
        for sub in (r.sub for r in results):
            prefix = f"gradaug/sub{sub.index}"
            total = totals.get(f"sub{sub.index}", math.nan)
            if math.isfinite(total):
                storage.put_scalar(f"{prefix}/loss", total)
            storage.put_scalar(f"{prefix}/width", sub.width)
            storage.put_scalar(f"{prefix}/scale", sub.transform.scale)
            mirrored = " mirrored" if sub.transform.flip else ""
            parts.append(
                f"sub{sub.index} width {sub.width:.3f} scale {sub.transform.scale:g}{mirrored} "
                f"loss {total:.4g}"
            )
        period = self.options.log_period
        if period and (self.trainer.iter + 1) % period == 0:
            logger.info("GradAug iter %d: %s", self.trainer.iter, "; ".join(parts))


def _engine(trainer: Any) -> Any:
    """The SimpleTrainer or AMPTrainer that runs the step: DefaultTrainer keeps one inside."""
    return getattr(trainer, "_trainer", trainer)


def _backward(engine: Any) -> Callable[[Tensor], None]:
    """How this engine sends a loss backward: scaled where it trains in float16."""
    scaler = getattr(engine, "grad_scaler", None)
    return Tensor.backward if scaler is None else lambda loss: scaler.scale(loss).backward()


def _call_after_backward(engine: Any, callback: Callable[[], None]) -> Callable[[], None]:
    """Has the engine call ``callback`` between backward and step; returns what undoes it.

    Detectron2 main calls ``engine.after_backward`` there (of the inner trainer, whose hooks a
    DefaultTrainer's are not), 0.6 calls ``engine._write_metrics``, in both of its trainers. Both
    are used where there are both: users' own ``run_step`` often has the second only.
    """
    names = [name for name in ("after_backward", "_write_metrics") if hasattr(engine, name)]
    if not names:
        raise GradAugError(
            f"{engine.__class__.__name__} is not one of Detectron2's trainers: derive it from "
            "SimpleTrainer, or call the hook's run_sub_networks() between backward and step"
        )

    def then_callback(original: Callable) -> Callable:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            callback()
            return result

        return wrapped

    for name in names:
        setattr(engine, name, then_callback(getattr(engine, name)))
    return lambda: [delattr(engine, name) for name in names]
