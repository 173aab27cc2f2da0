"""The MMEngine hook that adds GradAug to every training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import MMSeparateDistributedDataParallel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from gradaug_det.core.regularizer import values_of
from gradaug_det.core.step import Step, SubNetworkHook, check_alone
from gradaug_det.errors import ConfigError, GradAugError
from gradaug_det.mmdet.checks import TrainingChecks
from gradaug_det.mmdet.detector import GradAugDetector
from gradaug_det.mmdet.preprocessing import check_preprocessing
from gradaug_det.mmdet.replay import encode, image_names

_SKIPPED = "gradaug_skipped"  # in MMEngine's message hub, and with it in checkpoints


@HOOKS.register_module()
class GradAugHook(SubNetworkHook, Hook):
    """Runs the sub-networks of Algorithm 1 between the full pass's backward and the optimizer.

    For any training loop of MMEngine whose model trains through ``train_step`` and one
    ``OptimWrapper``: ``AmpOptimWrapper``, ``accumulative_counts``, ``clip_grad`` and
    ``MMDistributedDataParallel`` included. Nothing of the hook stays attached to the model or to
    the optimizer outside a ``train_step``, even after an exception.

    Its arguments are the settings of :class:`gradaug_det.core.options.GradAugOptions`.

    Source: GradAug, Algorithm 1.
    """

    framework, first_iteration = "mmdet", 1
    encode, image_names = staticmethod(encode), staticmethod(image_names)

    # ---- MMEngine's hook methods --------------------------------------------------------------

    def before_run(self, runner: Runner) -> None:
        """Runs :mod:`gradaug_det.mmdet.checks` on the training, if nobody has."""
        if not any(isinstance(hook, TrainingChecks) for hook in runner.hooks):
            TrainingChecks().before_run(runner)

    def before_train(self, runner: Runner) -> None:
        """Checks that this runner's detector can be trained with GradAug.

        Raises:
            UnslimmableError: its backbone cannot be slimmed.
            ConfigError: a setting does not fit the detector or the engine, the hook is there
                twice, or images are prepared otherwise than the zoo's backbone needs.
        """
        self.runner = runner
        check_preprocessing(runner.cfg)
        if not self.options.active:
            return
        check_alone(runner.hooks, GradAugHook, "a step can have its sub-networks once")
        _check_engine(runner)
        self.start(runner.model, GradAugDetector, runner.logger, runner.max_iters)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | tuple | list | None = None
    ) -> None:
        """Adds the sub-networks to the model's next ``train_step``, and to no later one."""
        if self.network is None:
            return
        model = runner.model

        def train_step(*args: Any, **kwargs: Any) -> Any:
            del model.train_step
            with self._sub_networks_after_backward():
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
        if self.results:
            self.record()
            self.results = []

    def after_train(self, runner: Runner) -> None:
        """Leaves the model as it was."""
        if self.network is not None:  # else a train_step there is torch.compile's
            vars(runner.model).pop("train_step", None)
            self.end()

    # ---- the step -----------------------------------------------------------------------------

    @contextmanager
    def _sub_networks_after_backward(self) -> Iterator[None]:
        """Within the block, the first backward is followed by the sub-networks' passes."""
        optim = self.runner.optim_wrapper
        with self.step() as step:
            original = optim.backward

            def backward(loss: Tensor, **kwargs: Any) -> None:
                count = optim._inner_count
                original(loss, **kwargs)
                if not step.done:
                    self.run_sub_networks(step, original, count)

            optim.backward = backward
            try:
                yield
            finally:
                vars(optim).pop("backward", None)
        if not step.done:
            raise GradAugError(
                f"{type(self.runner.model).__name__}.train_step never called "
                f"{type(optim).__name__}.backward through update_params: GradAug cannot add the "
                "sub-networks' gradients to it"
            )

    def run_sub_networks(self, step: Step, backward: Callable[..., None], count: int) -> None:
        """Adds the sub-networks' gradients; see :meth:`SubNetworkHook.finish_step`.

        Args:
            step: the full pass and its backward are done.
            backward: the optimizer wrapper's own.
            count: its inner count before the full pass's backward.
        """
        optim = self.runner.optim_wrapper

        def backward_again(loss: Tensor) -> None:
            # From the same count as the full pass: the same share of the accumulated gradient,
            # and one step counted, not n + 1.
            optim._inner_count = count
            backward(optim.scale_loss(loss))

        scaler = getattr(optim, "loss_scaler", None)
        self.finish_step(step, backward_again, scaler, last=optim.should_update())

    def record(self) -> None:
        """Puts this process's scalars, as its own losses, into MMEngine's log and visualizers."""
        hub = self.runner.message_hub
        results = [result for result in self.results if not result.problem]
        values = iter(values_of(results))
        for result in results:
            sub, losses = result.sub, {name: next(values) for name in result.losses}
            named = {"loss": sum(losses.values()), **losses}
            scalars = {f"{sub.name}/{name}": loss for name, loss in named.items()} | sub.scalars
            for name, value in scalars.items():
                hub.update_scalar(f"train/gradaug/{name}", value)
        self.log_step(sum(result.values or ()) for result in self.results)

    # ---- what the core asks for ---------------------------------------------------------------

    @property
    def iteration(self) -> int:
        return self.runner.iter

    def config_text(self) -> str:
        return self.runner.cfg.pretty_text

    def output_dir(self) -> str:
        return self.runner.work_dir

    def count_skipped(self) -> int:
        hub = self.runner.message_hub
        count = hub.get_info(_SKIPPED, 0) + 1
        hub.update_info(_SKIPPED, count)
        return count


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
