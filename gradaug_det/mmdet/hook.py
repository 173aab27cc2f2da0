"""The MMEngine hook that adds GradAug to every training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import MMSeparateDistributedDataParallel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradaug_det.core.dump import Dump, with_replay_hint
from gradaug_det.core.options import GradAugOptions
from gradaug_det.core.regularizer import SubNetworkLosses, values_of
from gradaug_det.core.sampling import SubNetwork, sample_sub_networks
from gradaug_det.core.step import Outcome, Step, Training, check_alone
from gradaug_det.errors import ConfigError, GradAugError, NonFiniteLossError
from gradaug_det.mmdet.batch import Batch
from gradaug_det.mmdet.checks import TrainingChecks
from gradaug_det.mmdet.detector import GradAugDetector
from gradaug_det.mmdet.preprocessing import check_preprocessing
from gradaug_det.mmdet.replay import encode, names

_SKIPPED = "gradaug_skipped"  # in MMEngine's message hub, and with it in checkpoints


@HOOKS.register_module()
class GradAugHook(Hook):
    """Runs the sub-networks of Algorithm 1 between the full pass's backward and the optimizer.

    For any training loop of MMEngine whose model trains through ``train_step`` and one
    ``OptimWrapper``: ``AmpOptimWrapper``, ``accumulative_counts``, ``clip_grad`` and
    ``MMDistributedDataParallel`` included. Nothing of the hook stays attached to the model or to
    the optimizer outside a ``train_step``, even after an exception.

    Args:
        settings: those of :class:`gradaug_det.core.options.GradAugOptions`.

    Raises:
        ConfigError: a setting is unknown or not allowed.

    Source: GradAug, Algorithm 1.
    """

    def __init__(self, **settings: Any) -> None:
        scales = settings.get("scales")
        if isinstance(scales, list):
            settings["scales"] = tuple(scales)
        try:
            self.options = GradAugOptions.from_mapping(settings)
        except ConfigError as error:
            raise ConfigError(f"GradAugHook.{error.key}", error.problem) from None
        self._training: Training | None = None
        self._results: list[SubNetworkLosses] = []

    # ---- MMEngine's hook methods --------------------------------------------------------------

    def before_run(self, runner: Runner) -> None:
        """Looks at the training's data, classes and starting weights, if nobody has.

        Raises:
            ConfigError, DataError: see :mod:`gradaug_det.mmdet.checks`.
        """
        if not any(isinstance(hook, TrainingChecks) for hook in runner.hooks):
            TrainingChecks().before_run(runner)

    def before_train(self, runner: Runner) -> None:
        """Checks that this runner's detector can be trained with GradAug.

        Raises:
            UnslimmableError: its backbone cannot be slimmed.
            ConfigError: the supervision, the engine or the norm policy does not fit, the hook is
                registered twice, or images are prepared otherwise than the zoo's backbone needs.
        """
        check_preprocessing(runner.cfg)
        if not self.options.active:
            return
        check_alone(runner.hooks, GradAugHook, "a step can have its sub-networks once")
        _check_engine(runner)
        try:
            network = GradAugDetector(_unwrapped(runner.model), self.options)
            self._training = Training(runner.model, network, runner.logger)
        except ConfigError as error:
            raise ConfigError(f"GradAugHook.{error.key}", error.problem) from None

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Adds the sub-networks to the model's next ``train_step``, and to no later one."""
        if self._training is None:
            return
        model = runner.model

        def train_step(*args: Any, **kwargs: Any) -> Any:
            del model.train_step
            with self._one_step(runner):
                return model.train_step(*args, **kwargs)

        model.train_step = train_step

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | tuple | list | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Logs the step: here, so that the detector's own losses come first in MMEngine's line."""
        results, self._results = self._results, []
        if not results:
            return
        _record(runner, results)
        period = self.options.log_period
        if period and (runner.iter + 1) % period == 0:
            parts = "; ".join(r.described(float(r.total)) for r in results)
            runner.logger.info("GradAug iter %d: %s", runner.iter + 1, parts)

    def after_train(self, runner: Runner) -> None:
        """Forgets the detector."""
        if self._training is not None:
            runner.model.__dict__.pop("train_step", None)
            self._training.close()
            self._training = None

    # ---- the step -----------------------------------------------------------------------------

    @contextmanager
    def _one_step(self, runner: Runner) -> Iterator[None]:
        """Within the block, the first backward is followed by the sub-networks' passes."""
        optim = runner.optim_wrapper
        with self._training.step() as step:
            optim.backward = self._backward(step, runner, optim.backward)
            try:
                yield
            finally:
                optim.__dict__.pop("backward", None)
        if not step.done:
            raise GradAugError(
                f"{type(runner.model).__name__}.train_step never called {type(optim).__name__}."
                "backward through update_params: GradAug cannot add the sub-networks' gradients "
                "to it"
            )

    def _backward(
        self, step: Step, runner: Runner, original: Callable[..., None]
    ) -> Callable[..., None]:
        """``OptimWrapper.backward`` with the sub-networks' passes after it."""
        optim = runner.optim_wrapper

        def backward(loss: Tensor, **kwargs: Any) -> None:
            count = optim._inner_count
            original(loss, **kwargs)
            if step.done:
                return

            def again(sub_loss: Tensor) -> None:
                # From the same count as the full pass: the same share of the accumulated
                # gradient, and one step counted, not n + 1.
                optim._inner_count = count
                original(optim.scale_loss(sub_loss))

            batch = step.take_batch()
            subs = sample_sub_networks(self.options, runner.iter)
            scaler = getattr(optim, "loss_scaler", None)
            last = optim.should_update()
            try:
                outcome = self._training.sub_networks(step, batch, subs, again, scaler, last=last)
            except NonFiniteLossError as error:
                if not error.here:
                    raise
                dump = self._dump(error, runner, batch, subs, step.rng)
                raise with_replay_hint(error, dump, runner.work_dir) from None
            self._count_skipped(runner, outcome, batch)
            self._results = outcome.results

        return backward

    def _count_skipped(self, runner: Runner, outcome: Outcome, batch: Batch) -> None:
        hub = runner.message_hub
        for what in outcome.skipped:
            count = hub.get_info(_SKIPPED, 0) + 1
            hub.update_info(_SKIPPED, count)
            runner.logger.warning(
                "GradAug iter %d: skipped %s (images %s); %d so far",
                runner.iter + 1,
                what,
                ", ".join(map(str, names(batch))),
                count,
            )

    def _dump(
        self,
        error: NonFiniteLossError,
        runner: Runner,
        batch: Batch,
        subs: list[SubNetwork],
        rng: Tensor,
    ) -> Dump:
        return Dump(
            framework="mmdet",
            config=runner.cfg.pretty_text,
            iteration=runner.iter,
            rank=get_rank(),
            subs=subs,
            bad=error.sub.index if error.sub else None,
            options=vars(self.options),
            rng=rng,
            weights=self._training.network.module.state_dict(),
            batch=encode(batch),
            images=names(batch),
        )


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _check_engine(runner: Runner) -> None:
    """Raises ConfigError if the sub-networks' gradients cannot reach this runner's optimizer."""
    model, optim = runner.model, runner.optim_wrapper
    if not isinstance(optim, OptimWrapper) or isinstance(optim, OptimWrapperDict):
        raise ConfigError(
            "optim_wrapper",
            f"is a {type(optim).__name__}; GradAugHook needs one OptimWrapper (or AmpOptimWrapper)",
        )
    whole = isinstance(model, DistributedDataParallel)
    if is_model_wrapper(model) and (
        not whole or isinstance(model, MMSeparateDistributedDataParallel)
    ):
        raise ConfigError(
            "model_wrapper_cfg",
            f"is {type(model).__name__}, which splits the detector that sub-networks are slices "
            "of; GradAugHook works with MMDistributedDataParallel and without a wrapper",
        )
    if "train_step" in vars(model):
        raise ConfigError(
            "compile",
            "must be False with GradAugHook: the model's train_step is compiled already, and a "
            "compiled step cannot run sub-networks of changing width",
        )


def _record(runner: Runner, results: list[SubNetworkLosses]) -> None:
    """Scalars for MMEngine's log line and its visualizers, of this process like its own losses."""
    results = [result for result in results if not result.problem]
    if not results:
        return
    values = values_of(results)
    hub = runner.message_hub
    for result in results:
        prefix = f"train/gradaug/sub{result.sub.index}"
        own, values = values[: len(result.losses)], values[len(result.losses) :]
        hub.update_scalar(f"{prefix}/loss", sum(own))
        hub.update_scalar(f"{prefix}/width", result.sub.width)
        hub.update_scalar(f"{prefix}/scale", result.sub.transform.scale)
        for name, value in zip(result.losses, own, strict=True):
            hub.update_scalar(f"{prefix}/{name}", value)
