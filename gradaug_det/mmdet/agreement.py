"""Whether the built detector fits its data's classes, and its starting weights fit the detector."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.mask_heads import FusedSemanticHead
from mmdet.models.seg_heads.base_semantic_head import BaseSemanticHead
from mmengine.logging import print_log
from mmengine.model import BaseModule, is_model_wrapper
from mmengine.runner import CheckpointLoader, Runner, find_latest_checkpoint
from torch import Tensor, nn

from gradaug_det.errors import ConfigError
from gradaug_det.mmdet.data import coco_metrics
from gradaug_det.mmdet.values import walk

# Of other things than the data's classes: stages of proposals, a backbone's own classifier.
_OTHERS = re.compile(r"(^|\.)(backbone|rpn_head|reid)(\.|$)")


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
        for key, metric in coco_metrics(config, split):
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
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    resumes = runner._resume and (runner._load_from or find_latest_checkpoint(runner.work_dir))
    if resumes:
        return
    initial = list(_pretrained(model))
    for name, module, settings in initial:
        key = ".".join(filter(None, ("model", name, "init_cfg.checkpoint")))
        _check_taken(module, settings["checkpoint"], settings.get("prefix"), key)
    if runner._load_from:
        whole = any(name == "backbone" for name, _, _ in initial)
        _check_taken(model, runner._load_from, None, "load_from", whole)


def _pretrained(model: nn.Module) -> Iterator[tuple[str, nn.Module, Mapping[str, Any]]]:
    for name, module in model.named_modules():
        if getattr(type(module), "init_weights", None) is not BaseModule.init_weights:
            continue
        given = module.init_cfg or []
        for settings in given if isinstance(given, list) else [given]:
            kind = settings.get("type")
            if getattr(kind, "__name__", kind) in ("Pretrained", "PretrainedInit"):
                yield name, module, settings


def _check_taken(
    module: nn.Module, file: str, prefix: str | None, key: str, whole: bool = False
) -> None:
    """``whole``: whether any tensor will do, for the backbone has weights already."""
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
