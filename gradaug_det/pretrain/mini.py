"""A short GradAug pretraining of a ResNet-18 on garments: the start of the mini detectors.

Until the model zoo has trained backbones to download, ``make demo`` makes its own with this.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from tqdm import tqdm

from gradaug_det.core.regularizer import gradaug_step
from gradaug_det.core.sampling import SubNetworkSampler, stable_seed
from gradaug_det.datasets import CLASS_NAMES, load_garments, render_garment_crops
from gradaug_det.files import atomic_path
from gradaug_det.pretrain.classifier import Classifier
from gradaug_det.zoo.convert import torchvision_to_detectron2

logger = logging.getLogger(__name__)

# Of the mini detectors' configs: BGR, 0-255.
PIXEL_MEAN = (103.53, 116.28, 123.675)
PIXEL_STD = (57.375, 57.12, 58.395)


@dataclass(frozen=True)
class MiniPretraining:
    """Settings of the pretraining.

    Args:
        epochs: passes over the crops.
        garments: training garments used, at most 4000.
        crop: side of a crop in pixels.
        batch: crops a step.
        lr: peak learning rate of AdamW with one cycle; in so few steps SGD, which the paper
            uses on ImageNet, hardly starts to learn.
        num_subnets, min_width, scales: of GradAug; see SubNetworkSampler.
        seed: of weights, order and sub-networks.
    """

    epochs: int = 4
    garments: int = 4000
    crop: int = 64
    batch: int = 32
    lr: float = 1e-3
    weight_decay: float = 0.05
    num_subnets: int = 1
    min_width: float = 0.9
    scales: tuple[float, ...] = (1.0, 0.875, 0.75, 0.625)
    seed: int = 0


def pretrain_mini(out: str | Path, settings: MiniPretraining | None = None) -> dict[str, float]:
    """Pretrains, or returns at once if ``out`` was made with the same settings.

    Args:
        out: the checkpoint to write, in Detectron2's names (``backbone.bottom_up.*``); the state
            of an unfinished training lies beside it and is resumed.

    Returns:
        ``top1``, per cent of held-out garments classified right, and ``epochs``.
    """
    settings, out = settings or MiniPretraining(), Path(out)
    if out.is_file():
        done = torch.load(out, map_location="cpu", weights_only=True)
        if done["settings"] == _plain(settings):
            return done["metrics"]
    torch.manual_seed(settings.seed)
    model = resnet18(num_classes=len(CLASS_NAMES)).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.lr, weight_decay=settings.weight_decay
    )
    images, labels = _crops("train", settings)
    steps = len(images) // settings.batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.lr, total_steps=steps * settings.epochs
    )
    resume = out.with_suffix(".partial.pth")
    first = _resume(resume, settings, model, optimizer, schedule)
    sampler = SubNetworkSampler(
        settings.num_subnets, settings.min_width, settings.scales, seed=settings.seed
    )
    classifier = Classifier(model)
    for epoch in range(first, settings.epochs):
        order = np.random.default_rng([settings.seed, epoch]).permutation(len(images))
        progress = tqdm(
            range(steps), f"pretraining, epoch {epoch + 1}/{settings.epochs}", disable=None
        )
        for step in progress:
            index = torch.from_numpy(order[step * settings.batch :][: settings.batch])
            batch = _augment(images[index], (settings.seed, epoch, step)), labels[index]
            optimizer.zero_grad()
            losses, _ = gradaug_step(classifier, batch, sampler.sample(epoch * steps + step))
            optimizer.step()
            schedule.step()
            if step % 10 == 0:
                progress.set_postfix(loss=f"{losses['loss_cls'].item():.3f}")
        _save(
            resume,
            settings=_plain(settings),
            epoch=epoch + 1,
            model=model.state_dict(),
            optimizer=optimizer.state_dict(),
            schedule=schedule.state_dict(),
        )
    metrics = {"top1": _accuracy(model, settings), "epochs": float(settings.epochs)}
    backbone = torchvision_to_detectron2(model.state_dict())
    state = {f"backbone.bottom_up.{name}": tensor for name, tensor in backbone.items()}
    _save(out, model=state, settings=_plain(settings), metrics=metrics)
    resume.unlink(missing_ok=True)
    logger.info("pretrained %s: %.1f %% top-1", out.name, metrics["top1"])
    return metrics


def _plain(settings: MiniPretraining) -> dict[str, object]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(settings).items()}


def _save(path: Path, **content: object) -> None:
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def _resume(
    path: Path, settings: MiniPretraining, model: nn.Module, optimizer: object, schedule: object
) -> int:
    """Loads an unfinished training with the same settings; returns the next epoch."""
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["settings"] != _plain(settings):
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return state["epoch"]


def _crops(split: str, settings: MiniPretraining) -> tuple[Tensor, Tensor]:
    """(N, 3, size, size) normalised BGR crops and (N,) labels."""
    garments, labels = (part[: settings.garments] for part in load_garments(split))
    crops = render_garment_crops(garments, labels, settings.crop, settings.seed)
    images = torch.from_numpy(crops).flip(1).float()  # RGB -> BGR
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PIXEL_MEAN, PIXEL_STD))
    return (images - mean) / std, torch.from_numpy(labels).long()


def _augment(images: Tensor, seed: tuple[int, ...]) -> Tensor:
    """Mirrors half of the images and shifts all of them by up to an eighth."""
    generator = torch.Generator().manual_seed(stable_seed("augment", *seed))
    mirror = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirror[:, None, None, None], images.flip(3), images)
    reach = images.shape[-1] // 8
    shift = torch.randint(-reach, reach + 1, (2,), generator=generator).tolist()
    return images.roll(shift, dims=(2, 3))


@torch.no_grad()
def _accuracy(model: nn.Module, settings: MiniPretraining) -> float:
    images, labels = _crops("test", settings)
    model.eval()
    right = sum(
        (model(part).argmax(1) == truth).sum().item()
        for part, truth in zip(images.split(200), labels.split(200), strict=True)
    )
    return 100.0 * right / len(labels)
