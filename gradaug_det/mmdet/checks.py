"""When a training is checked, and the built detector against its data and starting weights."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.mask_heads import FusedSemanticHead
from mmdet.models.seg_heads.base_semantic_head import BaseSemanticHead
from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseModule, is_model_wrapper
from mmengine.runner import BaseLoop, CheckpointLoader, Runner, find_latest_checkpoint
from torch import Tensor, nn

from gradaug_det.check_data.kinds import CheckResult
from gradaug_det.core.processes import run_once_a_machine
from gradaug_det.errors import ConfigError
from gradaug_det.mmdet.data import (
    SPLITS,
    check_data,
    check_learned,
    count_training_classes,
    find_metrics,
)
from gradaug_det.mmdet.values import check_values, type_name, walk

# Of other things than the data's classes: stages of proposals, a backbone's own classifier.
_OTHERS = re.compile(r"(^|\.)(backbone|rpn_head|reid)(\.|$)")


class TrainingChecks(Hook):
    """Looks at data, classes and starting weights before the first step.

    :func:`gradaug_det.mmdet.train.build_runner` has it look before data is built, too. GradAugHook
    asks for it where that function was not used.
    """

    def __init__(self) -> None:
        self._results: dict[str, CheckResult] | None = None
        self._done = False

    def before_build(self, runner: Runner) -> None:
        """Checks what the config and the files tell.

        Raises:
            ConfigError, DataError: see :mod:`gradaug_det.mmdet.data`.
        """
        config = runner.cfg
        if not config.get("train_dataloader"):  # made without one: look at what was built
            loops = {split: getattr(runner, f"_{split}_loop") for split in SPLITS}
            config = {f"{s}_dataloader": getattr(loops[s], "dataloader", None) for s in SPLITS}
        self._results = {}
        _once_a_machine(lambda: self._results.update(check_data(config)))

    def before_run(self, runner: Runner) -> None:
        """Checks what is known once the training's data is built.

        Raises:
            ConfigError, DataError: see :mod:`gradaug_det.mmdet.data` and the functions below.
        """
        if self._done or not isinstance(runner._train_loop, BaseLoop):  # validates or tests
            return
        if self._results is None:
            if runner.cfg.get("train_dataloader"):
                check_values(runner.cfg)
            self.before_build(runner)
        model = _unwrap(runner)
        check_tasks(model, runner.cfg)
        classes = count_training_classes(runner.train_dataloader.dataset)
        if classes is not None:
            check_heads(model, classes)
        _once_a_machine(lambda: check_learned(runner, self._results))
        _once_a_machine(lambda: check_weights(runner))
        self._done = True


def _once_a_machine(check: Callable[[], Any]) -> None:
    is_first = int(os.environ.get("LOCAL_RANK", get_rank())) == 0
    run_once_a_machine(check, is_first, all_gather_object)


def _unwrap(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def check_heads(model: nn.Module, classes: int) -> None:
    """Compares every head's ``num_classes``.

    Raises:
        ConfigError: names the head and both numbers.
    """
    for name, module in model.named_modules():
        given = getattr(module, "num_classes", None)
        if (
            not name  # a detector repeats its heads' numbers
            or not isinstance(given, int)
            or _OTHERS.search(name)
            or isinstance(module, (RPNHead, FusedSemanticHead, BaseSemanticHead))
            or getattr(module, "class_agnostic", False)
        ):
            continue
        key = "num_classes"
        if hasattr(module, "num_things_classes"):  # and stuff, which the data may have or not
            key, given = "num_things_classes", module.num_things_classes
        if given != classes:
            raise ConfigError(
                f"model.{name}.{key}",
                f"is {given}, but metainfo.classes of train_dataloader.dataset names {classes}; "
                "set each head's number to that of the data's classes",
            )


def check_tasks(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Compares what CocoMetric is to score with what the detector can find.

    Raises:
        ConfigError: masks are scored, and neither the detector nor its training has any.
    """
    if any("mask" in name or "panoptic" in name for name, _ in model.named_modules()):
        return
    training = config.get("train_dataloader") or {}
    if any(name == "with_mask" and value for _, name, value in walk(dict(training.items()))):
        return  # masks from a head of another name
    for split in ("val", "test"):
        for key, metric in find_metrics(config, split):
            if "segm" in metric.get("metric", ()):
                problem = f"asks for 'segm', but {type(model).__name__} has no head of masks; "
                raise ConfigError(f"{key}.metric", problem + "write 'bbox'")


def check_weights(runner: Runner) -> None:
    """Reads the files of ``init_cfg`` and ``load_from`` as MMEngine does a moment later.

    Modules that convert names themselves (``init_weights`` of their own) are left to MMEngine.

    Raises:
        ConfigError: of the backbone, or of another module that loads a file, not one tensor is
            in the file under its name with its shape.
    """
    if runner._resume and (runner._load_from or find_latest_checkpoint(runner.work_dir)):
        return
    model = _unwrap(runner)
    initial = list(_find_pretrained(model))
    for name, module, settings in initial:
        key = ".".join(filter(None, ("model", name, "init_cfg.checkpoint")))
        _check_taken(module, settings["checkpoint"], settings.get("prefix"), key)
    if runner._load_from:
        # Any tensor will do if the backbone has weights already.
        whole = any(name == "backbone" for name, _, _ in initial)
        _check_taken(model, runner._load_from, None, "load_from", whole)


def _find_pretrained(model: nn.Module) -> Iterator[tuple[str, nn.Module, Mapping[str, Any]]]:
    for name, module in model.named_modules():
        if getattr(type(module), "init_weights", None) is not BaseModule.init_weights:
            continue
        given = module.init_cfg or []
        for settings in given if isinstance(given, list) else [given]:
            if type_name(settings) in ("Pretrained", "PretrainedInit"):
                yield name, module, settings


def _check_taken(
    module: nn.Module, file: str, prefix: str | None, key: str, whole: bool = False
) -> None:
    try:
        content = CheckpointLoader.load_checkpoint(file, map_location="cpu")
    except FileNotFoundError:
        raise ConfigError(key, f"names a file that does not exist: {file}") from None
    content = content.get("state_dict", content)
    start = prefix.rstrip(".") + "." if prefix else ""
    theirs = {
        re.sub(r"^module\.", "", name).removeprefix(start): value.shape
        for name, value in content.items()
        if isinstance(value, Tensor) and name.startswith(start)
    }
    wanted = {name: value.shape for name, value in module.state_dict().items() if value.dim()}
    backbone = {name: shape for name, shape in wanted.items() if name.startswith("backbone.")}
    wanted = wanted if whole else backbone or wanted
    taken = [name for name, shape in wanted.items() if theirs.get(name) == shape]
    if wanted and not taken:
        first = next(iter(theirs), None) or next(iter(content), "nothing")
        place = ", or set prefix"
        if key == "load_from":
            place = " and name it in model.backbone.init_cfg; load_from is for whole detectors"
        raise ConfigError(
            key,
            f"{file} has not one tensor with name and shape of the {len(wanted)} wanted (it has "
            f"{first!r}, wanted is {next(iter(wanted))!r}): the training would start from random "
            f"weights; convert a backbone with `gradaug-det zoo convert --to mmdet`{place}",
        )
    if 2 * len(taken) < len(wanted):
        said = f"{key}: {file} has {len(taken)} of {len(wanted)} tensors that are wanted"
        print_log(said, logger="current", level=logging.WARNING)
