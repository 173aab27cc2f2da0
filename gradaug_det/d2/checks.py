"""A detector's heads against its data, and a config against the machine that it runs on."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2 import _C
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer
from detectron2.layers import DeformConv, ModulatedDeformConv
from detectron2.layers.roi_align_rotated import ROIAlignRotated
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gradaug_det.d2.data import check_datasets, check_num_classes
from gradaug_det.errors import ConfigError

logger = logging.getLogger("detectron2.gradaug")
_COMPILED = {
    DeformConv: "deform_conv_forward",
    ModulatedDeformConv: "modulated_deform_conv_forward",
    ROIAlignRotated: "roi_align_rotated_forward",
}
_NOT_COMPILED = "asks for what this pure-Python build of Detectron2 does not have"
_BUILD_IT = "build Detectron2 with its C++ operators"


def check_operators(cfg: CfgNode) -> None:
    """Raises ConfigError if a yaml config asks for what a pure-Python build of Detectron2 has not
    got; names the key."""
    model, asked = cfg.MODEL, {}
    if any(model.RESNETS.DEFORM_ON_PER_STAGE) and not _is_compiled(_COMPILED[DeformConv]):
        asked["RESNETS.DEFORM_ON_PER_STAGE"] = "[False, False, False, False]"
    for head in ("ROI_BOX_HEAD", "ROI_MASK_HEAD", "ROI_KEYPOINT_HEAD"):
        rotated = model[head].POOLER_TYPE == "ROIAlignRotated"
        if rotated and not _is_compiled(_COMPILED[ROIAlignRotated]):
            asked[f"{head}.POOLER_TYPE"] = "ROIAlignV2, for boxes that are not rotated"
    for key, way_out in asked.items():
        raise ConfigError(f"MODEL.{key}", f"{_NOT_COMPILED}; set it to {way_out}, or {_BUILD_IT}")


def check_detector(model: nn.Module, classes: Sequence[str], *, scored: bool) -> None:
    """Compares every head with the data, and every layer with what Detectron2 was built with.

    Args:
        model: a Detectron2 detector.
        classes: names by class index; empty if they are not known.
        scored: whether predictions are scored, which those of too many classes cannot be.

    Raises:
        ConfigError: names the head and both numbers, or the layer.
    """
    for name, layer in model.named_modules():
        for kind, function in _COMPILED.items():
            if isinstance(layer, kind) and not _is_compiled(function):
                raise ConfigError(f"{kind.__name__} in {name}", f"{_NOT_COMPILED}; {_BUILD_IT}")
    for name, count in _find_heads(model) if classes else ():
        key = f"num_classes of the detector's {name}" if name else "the detector's num_classes"
        check_num_classes(key, count, classes, scored=scored)


def _find_heads(model: nn.Module) -> Iterator[tuple[str, int]]:
    """Yields the modules that tell things apart, and how many they know."""
    for name, module in model.named_modules():
        if {"backbone", "sem_seg_head"} & set(name.split(".")):
            continue  # a classifier's classes; classes of stuff
        count = getattr(module, "num_classes", None)
        if isinstance(count, int) and not isinstance(count, bool):
            yield name, count
        elif isinstance(module, MaskRCNNConvUpsampleHead) and module.predictor.out_channels > 1:
            yield name, module.predictor.out_channels  # 1: the same mask for any class
        elif isinstance(module, RetinaNetHead):
            anchors = module.bbox_pred.out_channels // 4
            yield name, module.cls_score.out_channels // anchors


def _is_compiled(function: str) -> bool:
    try:
        getattr(_C, function)
    except (AttributeError, ImportError):
        return False
    return True


def check_training(trainer: Any) -> None:
    """Checks data and heads of a training that was set up elsewhere, once in a process.

    Args:
        trainer: one of Detectron2's. Of those without a yaml config, nothing is known.

    Raises:
        DataError, ConfigError: as `check_datasets` and `check_detector`; that classes do not agree
            is only logged if the trainer's own loader or mapper may make others of them.
    """
    cfg = getattr(trainer, "cfg", None)
    if not isinstance(cfg, CfgNode):
        return
    # Hooks have a proxy, whose type is another.
    loader = getattr(trainer.__class__, "build_train_loader", DefaultTrainer.build_train_loader)
    usual = loader.__module__.partition(".")[0] in ("detectron2", "gradaug_det")
    if not usual and not {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} <= set(DatasetCatalog.list()):
        return  # it knows where its data is
    model = getattr(trainer, "_trainer", trainer).model
    model = model.module if isinstance(model, DistributedDataParallel) else model
    try:
        classes = check_datasets(cfg, again=False)
        check_detector(model, classes, scored=bool(cfg.DATASETS.TEST))
    except ConfigError as error:
        if usual:
            raise
        logger.warning("%s", error)


def check_device(key: str, device: object, amp_key: str = "", amp: bool = False) -> None:
    """Fails if this machine has no such device, or the device does no mixed precision.

    Args:
        key, amp_key: of the config.
        device: its value of ``key``.
        amp: its value of ``amp_key``.

    Raises:
        ConfigError: names the key and what would work.
    """
    gpus = torch.cuda.device_count()
    try:
        kind = torch.device(device).type
        torch.empty(1, device=device)
    except Exception:  # torch raises almost anything for a device that is not there
        has = f"{gpus} GPUs that PyTorch can use" if gpus else "no GPU that PyTorch can use"
        way_out = "cpu, cuda or, of several, cuda:0 and so on" if gpus else "cpu"
        raise ConfigError(
            key, f"is {device!r}, but this machine has {has}; set it to {way_out}"
        ) from None
    if amp and kind != "cuda":
        problem = f"is True, which Detectron2 does on GPUs alone, and {key} is {str(device)!r}"
        raise ConfigError(amp_key, f"{problem}; set {amp_key} to False")


def check_gpus(wanted: int) -> None:
    """Raises ConfigError if ``--num-gpus`` asks for more than this machine has; 0 and 1 start no
    processes, and run without one."""
    gpus = torch.cuda.device_count()
    if wanted > max(gpus, 1):
        raise ConfigError(
            "--num-gpus",
            f"is {wanted}, but this machine has {gpus} that PyTorch can use; leave it out to train "
            "in one process, or start several with torchrun, which needs no GPU",
        )


def check_batch(key: str, total: object) -> None:
    """Raises ConfigError if a batch cannot be shared out evenly to the processes."""
    world = comm.get_world_size()
    if not isinstance(total, int) or total < 1 or total % world:
        each = f"a multiple of {world}, the number of processes" if world > 1 else "1 or more"
        raise ConfigError(key, f"must be {each}, got {total!r}")
