"""When a training is checked: as early as its runner allows, on one process of each machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner

from gradaug_det.check_data.kinds import CheckResult
from gradaug_det.core.processes import once_a_machine
from gradaug_det.mmdet.agreement import check_heads, check_tasks, check_weights
from gradaug_det.mmdet.data import SPLITS, check_data, check_learned, training_classes
from gradaug_det.mmdet.values import check_values


class TrainingChecks(Hook):
    """Looks at data, classes and starting weights before the first step.

    :func:`gradaug_det.mmdet.train.build_runner` has it look before data is built, too. GradAugHook
    asks for it where that function was not used.
    """

    def __init__(self) -> None:
        self._results: dict[str, CheckResult] | None = None
        self._done = False

    def before_build(self, runner: Runner) -> None:
        """What the config and the files tell.

        Raises:
            ConfigError, DataError: see :mod:`gradaug_det.mmdet.data`.
        """
        self._results = {}
        _once_a_machine(lambda: self._results.update(check_data(_config(runner))))

    def before_run(self, runner: Runner) -> None:
        """What is known once the training's data is built.

        Raises:
            ConfigError, DataError: see :mod:`gradaug_det.mmdet.data` and
                :mod:`gradaug_det.mmdet.agreement`.
        """
        if self._done or not isinstance(runner._train_loop, BaseLoop):  # validates or tests
            return
        if self._results is None:
            if runner.cfg.get("train_dataloader"):
                check_values(runner.cfg)
            self.before_build(runner)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        check_tasks(model, runner.cfg)
        classes = training_classes(runner.train_dataloader.dataset)
        if classes is not None:
            check_heads(model, classes)
        _once_a_machine(lambda: check_learned(runner, self._results))
        _once_a_machine(lambda: check_weights(runner))
        self._done = True


def _config(runner: Runner) -> dict[str, Any]:
    """The config; in its place what was built of a runner that was made without one."""
    if runner.cfg.get("train_dataloader"):
        return runner.cfg
    loops = {split: getattr(runner, f"_{split}_loop") for split in SPLITS}
    loaders = {split: getattr(loop, "dataloader", None) for split, loop in loops.items()}
    return {f"{split}_dataloader": loader for split, loader in loaders.items()}


def _once_a_machine(check: Callable[[], Any]) -> None:
    is_first = int(os.environ.get("LOCAL_RANK", get_rank())) == 0
    once_a_machine(check, is_first, all_gather_object)
