"""Tests of GradAug's gradients on a device, also those of ``pytest -m cuda``.

Each returns the relative difference of a step's gradients to those that they should equal, and
what is allowed: rounding, and proposals that rounding lets in or keeps out.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from benchmarks.gpu.backends import backends
from benchmarks.training.detectron2 import Detectron2Training
from benchmarks.training.trainings import training_class
from benchmarks.training.workload import Training, Variant, Workload
from gradaug_det.errors import GradAugError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
VARIANT = Variant("both", 1)
WORKLOAD = Workload(
    *("detectron2", CONFIGS, (64, 64), 1), small=True, options={"min_width": 0.7, "flip_prob": 0.5}
)
# All anchors are proposals, and all of both are sampled: devices draw other random numbers, and
# rounding would choose among them.
ALL = 100_000
SAMPLED = {f"MODEL.{part}.BATCH_SIZE_PER_IMAGE": ALL for part in ("RPN", "ROI_HEADS")}
SAMPLED |= {f"MODEL.{part}.POSITIVE_FRACTION": 1.0 for part in ("RPN", "ROI_HEADS")}
SAMPLED |= {f"MODEL.RPN.{kind}_NMS_TOPK_TRAIN": ALL for kind in ("PRE", "POST")}
SAMPLED |= {"MODEL.RPN.NMS_THRESH": 1.0, "SOLVER.CLIP_GRADIENTS.ENABLED": False}
ROUNDING = 0.05
MOST_STEPS = 20  # until float16's scale is small enough


def gradients(training: Training) -> Tensor:
    """All gradients of a step as the optimizer gets them, in one vector on the CPU.

    Raises:
        GradAugError: no step of many was the optimizer's, or the gradients are not finite.
    """
    found: list[Tensor] = []

    def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not found:
            every = (p for group in optimizer.param_groups for p in group["params"])
            grads = (torch.zeros_like(p) if p.grad is None else p.grad for p in every)
            found.append(torch.cat([g.detach().cpu().double().flatten() for g in grads]))

    with training.optimizer.register_step_pre_hook(note), backends(tf32=False):
        for _ in range(MOST_STEPS):
            training.step(0)
            if found:
                break
    if not found or not found[0].isfinite().all() or not found[0].any():
        raise GradAugError(f"{'no' if not found else 'bad'} gradients in {MOST_STEPS} steps")
    return found[0]


def compare(found: Tensor, wanted: Tensor) -> dict[str, float]:
    return {"difference": float((found - wanted).norm() / wanted.norm()), "allowed": ROUNDING}


def detectron2_on(
    device: str,
    size: tuple[int, int] = WORKLOAD.size,
    channels_last: bool = False,
    norm: str = "FrozenBN",
) -> Detectron2Training:
    """The small Mask R-CNN."""
    workload = replace(WORKLOAD, device=device, size=size, channels_last=channels_last)
    return Detectron2Training(workload, VARIANT, {**SAMPLED, "MODEL.RESNETS.NORM": norm})


@lru_cache
def _reference(device: str) -> tuple[dict[str, Tensor], Tensor]:
    """Its weights and statistics, and its gradients."""
    training = detectron2_on(device)
    return training.model.state_dict(), gradients(training)


def check_detectron2(device: str, beside: str = "cpu", **settings: Any) -> dict[str, float]:
    training = detectron2_on(device, **settings)
    state, wanted = _reference(beside)
    training.model.load_state_dict(state)
    return compare(gradients(training), wanted)


def check_channels_last(device: str) -> dict[str, float]:
    return check_detectron2(device, device, channels_last=True)


def check_precision(
    device: str, precision: torch.dtype = torch.bfloat16, scaled: bool = False
) -> dict[str, float]:
    """The sum of the full pass and of a whole sub-network beside twice the plain step's.

    A pass in another precision, or a loss with another scale, differs by far more than rounding.
    """
    workload = replace(WORKLOAD, device=device, options={"min_width": 1.0, "scales": [1.0]})
    twice, once = (
        gradients(Detectron2Training(workload, variant, SAMPLED, precision, scaled))
        for variant in (Variant("labels", 1), Variant())
    )
    return compare(twice, 2 * once)


def check_scaled(device: str) -> dict[str, float]:
    """With GradScaler; on a CPU, where float16 takes seconds a step, in bfloat16."""
    on_cuda = torch.device(device).type == "cuda"
    return check_precision(device, torch.float16 if on_cuda else torch.bfloat16, scaled=True)


def check_mmdet(device: str) -> dict[str, Any]:
    if find_spec("mmdet") is None:
        return {"not_reached": "MMDetection is not installed"}
    from mmcv.ops import get_compiling_cuda_version

    if torch.device(device).type == "cuda" and get_compiling_cuda_version() == "not available":
        return {"not_reached": "MMCV's operators are built for CPUs alone"}
    workloads = [replace(WORKLOAD, task="mmdet", device=kind) for kind in (device, "cpu")]
    one, two = (training_class("mmdet")(workload, VARIANT) for workload in workloads)
    for detector in (one.model, two.model):
        for sampler in (detector.rpn_head.sampler, detector.roi_head.bbox_sampler):
            sampler.num, sampler.pos_fraction = ALL, 1.0
        proposals = detector.train_cfg.rpn_proposal
        proposals.nms_pre = proposals.max_per_img = ALL
        proposals.nms.iou_threshold = 1.0
    one.model.load_state_dict(two.model.state_dict())
    return compare(gradients(one), gradients(two))


def check_processes(device: str) -> dict[str, float]:
    """DDP beside the mean of what each process computes alone; SyncBN beside BatchNorm."""
    world = process_count(device)
    with tempfile.TemporaryDirectory() as folder:
        if world == 1:
            _process(0, world, device, folder)
        else:
            mp.spawn(_process, (world, device, folder), nprocs=world)
        return json.loads(Path(folder, "found.json").read_text())


def process_count(device: str) -> int:
    """Returns how many processes there is a GPU for, 2 at most; one on a CPU."""
    return min(2, torch.cuda.device_count()) if torch.device(device).type == "cuda" else 1


def _process(rank: int, world: int, device: str, folder: str) -> None:
    backend = "gloo"
    if torch.device(device).type == "cuda":
        backend, device = "nccl", f"cuda:{rank}"
        torch.cuda.set_device(rank)
    # By norm, in DDP and alone: images of other sizes have other gradients, and SyncBN's are
    # BatchNorm's where all processes have the same images. On a CPU, DDP refuses SyncBN.
    pairs = {"FrozenBN": ("FrozenBN", (64, 64 + 32 * rank))}
    if backend == "nccl":
        pairs["SyncBN"] = ("BN", WORKLOAD.size)

    def build(norm: str, size: tuple[int, int]) -> Detectron2Training:
        return detectron2_on(device, size=size, norm=norm)

    alone = [build(*pair) for pair in pairs.values()]
    where = f"file://{folder}/store"
    differences = []
    dist.init_process_group(
        backend, init_method=where, rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    try:
        for one, (norm, (_, size)) in zip(alone, pairs.items(), strict=True):
            together = build(norm, size)  # DDP gives all the first one's statistics
            one.model.load_state_dict(together.model.state_dict())
            wanted, found = (gradients(training).to(device) for training in (one, together))
            dist.all_reduce(wanted)
            differences.append(compare(found, wanted / world))
    finally:
        dist.destroy_process_group()
    if rank == 0:
        largest = max(differences, key=lambda one: one["difference"])
        Path(folder, "found.json").write_text(json.dumps(largest))


CHECKS: dict[str, Callable[[str], dict[str, Any]]] = {
    "Detectron2 beside the CPU": check_detectron2,
    "MMDetection beside the CPU": check_mmdet,
    "bfloat16 beside the plain step": check_precision,
    "GradScaler (float16 on CUDA) beside the plain step": check_scaled,
    "channels_last beside contiguous": check_channels_last,
    "DDP (on CUDA with SyncBN too) beside processes alone": check_processes,
}
