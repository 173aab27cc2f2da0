"""The Detectron2 hook that adds GradAug to every training step."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from omegaconf import DictConfig
from torch import Tensor

from gradaug_det.core.regularizer import values_of
from gradaug_det.core.slimming import Overrides
from gradaug_det.core.step import Step, SubNetworkHook, check_alone
from gradaug_det.d2.checks import check_training
from gradaug_det.d2.config import gradaug_options
from gradaug_det.d2.detector import GradAugDetector
from gradaug_det.d2.preprocessing import check_preprocessing
from gradaug_det.d2.replay import config_text, encode, image_names
from gradaug_det.errors import GradAugError

logger = logging.getLogger("detectron2.gradaug")


class GradAugHook(SubNetworkHook, HookBase):
    """Runs the sub-networks of Algorithm 1 between the full pass's backward and the optimizer.

    Register it with any trainer made of Detectron2's ``SimpleTrainer`` or ``AMPTrainer``
    (``DefaultTrainer`` is), in 0.6 or today's main branch. The training loop, the optimizer and
    the data loader stay as they are.

    Its arguments are the settings of :class:`gradaug_det.core.options.GradAugOptions`.

    Source: GradAug, Algorithm 1.
    """

    framework, first_iteration = "detectron2", 0
    encode, image_names = staticmethod(encode), staticmethod(image_names)

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._step: Step | None = None
        self._step_scope = ExitStack()
        self._insertion = ExitStack()
        self._skipped = 0

    @classmethod
    def from_config(cls, cfg: CfgNode) -> GradAugHook | None:
        """Returns the hook that ``cfg.GRADAUG`` asks for; None if it is not enabled.

        ``register_hooks`` drops a None, so what this returns can be registered as it is.
        """
        options = gradaug_options(cfg)
        return cls(**vars(options)) if cfg.GRADAUG.ENABLED else None

    # ---- Detectron2's hook methods ------------------------------------------------------------

    def before_train(self) -> None:
        """Finds the insertion point and checks that the detector can be trained this way.

        Raises:
            UnslimmableError: its backbone cannot be slimmed.
            ConfigError: a setting does not fit the detector or the trainer, the hook is there
                twice, or images are prepared otherwise than the zoo's backbone needs.
        """
        if isinstance(cfg := getattr(self.trainer, "cfg", None), (CfgNode, DictConfig)):
            check_preprocessing(cfg)
        check_training(self.trainer)
        if not self.options.active:
            return
        hooks = getattr(self.trainer, "_hooks", ())
        check_alone(hooks, GradAugHook, "a step can have its sub-networks once")
        engine = _engine(self.trainer)
        self.start(
            engine.model, GradAugDetector, logger, getattr(self.trainer, "max_iter", math.inf)
        )
        self._insertion = _call_after_backward(engine, self.run_sub_networks)

    def before_step(self) -> None:
        """Begins a step; see :meth:`SubNetworkHook.step`."""
        if self.network is not None:
            self._step = self._step_scope.enter_context(self.step())

    def after_step(self) -> None:
        """Raises GradAugError if the trainer never gave the sub-networks their turn."""
        self._step_scope.close()
        if self._step is not None and not self._step.done:
            raise GradAugError(
                f"{_engine(self.trainer).__class__.__name__}.run_step stepped without the "
                "sub-networks' gradients: it overrides SimpleTrainer.run_step. Call the hook's "
                "run_sub_networks() in it, between backward and optimizer.step"
            )

    def after_train(self) -> None:
        """Leaves model and trainer as they were, also after an exception."""
        self._step_scope.close()
        self._insertion.close()
        self._step = None
        self.end()

    # ---- the step -----------------------------------------------------------------------------

    def run_sub_networks(self) -> None:
        """Adds the sub-networks' gradients. Call it between backward and ``optimizer.step``, once
        a step; the hook does so itself with Detectron2's trainers.

        Calls from another thread than the training's are ignored: Detectron2's main branch may
        write a step's metrics in one while the next step runs.

        Raises:
            NonFiniteLossError: see :meth:`SubNetworkHook.finish_step`.
        """
        step = self._step
        if step is None or step.done or step.thread != threading.get_ident():
            return
        scaler = getattr(_engine(self.trainer), "grad_scaler", None)

        def backward(loss: Tensor) -> None:
            (loss if scaler is None else scaler.scale(loss)).backward()

        # Not in after_step: the hook may be registered after the one that writes the storage.
        self.finish_step(step, backward, scaler)
        self.record()

    def record(self) -> None:
        """Puts the means over all processes into the storage, in the steps in which the engine does
        so with its own losses (``gather_metric_period`` in Detectron2's main branch)."""
        if (self.iteration + 1) % getattr(_engine(self.trainer), "gather_metric_period", 1):
            return
        scalars = [f"{r.sub.name}/{name}" for r in self.results for name in r.losses]
        own = dict(zip(scalars, values_of(self.results), strict=True))
        gathered = self.meeting.gather(own)
        if not gathered:
            return
        storage = self.trainer.storage
        totals: dict[str, float] = {}
        for name in dict.fromkeys(name for one in gathered for name in one):
            # A process has none, or one that is not finite, of a sub-network that it skipped.
            values = [one[name] for one in gathered if math.isfinite(one.get(name, math.nan))]
            if values:
                mean = sum(values) / len(values)
                sub = name.partition("/")[0]
                totals[sub] = totals.get(sub, 0.0) + mean
                storage.put_scalar(f"gradaug/{name}", mean)
        for sub in (result.sub for result in self.results):
            # Detectron2's console line shows what has "loss" in its name, and so this alone.
            if (total := totals.get(sub.name)) is not None:
                storage.put_scalar(f"gradaug/{sub.name}/loss", total)
            for name, value in sub.scalars.items():
                storage.put_scalar(f"gradaug/{name}", value)
        self.log_step(totals.get(r.sub.name, math.nan) for r in self.results)

    # ---- what the core asks for ---------------------------------------------------------------

    @property
    def iteration(self) -> int:
        return self.trainer.iter

    def config_text(self) -> str | None:
        return config_text(getattr(self.trainer, "cfg", None))

    def output_dir(self) -> str | None:
        cfg = getattr(self.trainer, "cfg", None)
        if isinstance(cfg, CfgNode):
            return cfg.OUTPUT_DIR
        return getattr(getattr(self.trainer, "checkpointer", None), "save_dir", None) or None

    def count_skipped(self) -> int:
        self._skipped += 1
        if comm.is_main_process():
            self.trainer.storage.put_scalar("gradaug/skipped", self._skipped, smoothing_hint=False)
        return self._skipped

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self._skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._skipped = state["skipped"]


def _engine(trainer: Any) -> Any:
    # DefaultTrainer keeps the SimpleTrainer or AMPTrainer that runs the step inside.
    return getattr(trainer, "_trainer", trainer)


def _call_after_backward(engine: Any, callback: Callable[[], None]) -> Overrides:
    """Has the engine call ``callback`` between backward and step, until what it returns is closed.

    Detectron2 main calls ``engine.after_backward`` there (of the inner trainer, whose hooks a
    DefaultTrainer's are not), 0.6 calls ``engine._write_metrics``, in both of its trainers. Both
    are used where there are both: users' own ``run_step`` often has the second only. Hooks that
    look at gradients in ``after_backward`` see the sum of all passes.
    """
    overrides = Overrides()

    def override(name: str) -> None:
        original = getattr(engine, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            callback()
            return original(*args, **kwargs)

        overrides.set(vars(engine), name, call)

    names = [name for name in ("after_backward", "_write_metrics") if hasattr(engine, name)]
    for name in names:
        override(name)
    if not names:
        raise GradAugError(
            f"{engine.__class__.__name__} is not one of Detectron2's trainers: derive it from "
            "SimpleTrainer, or call the hook's run_sub_networks() between backward and step"
        )
    return overrides
