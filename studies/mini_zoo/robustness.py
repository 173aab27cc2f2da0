"""Accuracy of a classifier under attack and under ImageNet-C's corruptions.

Source: GradAug's robustness experiments (FGSM; Goodfellow et al., 2015) and Hendrycks and
Dietterich, Benchmarking Neural Network Robustness, 2019.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradaug_det.errors import DataError
from gradaug_det.evaluation.corruptions import (
    SEVERITIES,
    SMALLEST_SIDE,
    corruption_names,
    seeded_corruptions,
)
from gradaug_det.pretrain.data import normalize
from gradaug_det.pretrain.scoring import EPSILONS, fgsm
from gradaug_det.utils.files import atomic_path

logger = logging.getLogger(__name__)

BATCH = 200


@torch.no_grad()
def classify(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, classes) of uint8 (N, 3, H, W) images."""
    return torch.cat([model(normalize(part)) for part in images.split(BATCH)])


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Per cent of uint8 (N, 3, H, W) images that are classified right."""
    return 100 * (classify(model, images).argmax(1) == labels).sum().item() / len(labels)


def fgsm_accuracy(model: nn.Module, images: Tensor, labels: Tensor, epsilon: float) -> float:
    """Per cent of images that are classified right after :func:`fgsm`."""
    moved = [
        fgsm(model, part, truth, epsilon)
        for part, truth in zip(images.split(BATCH), labels.split(BATCH), strict=True)
    ]
    return accuracy(model, torch.cat(moved), labels)


def corrupt_images(images: Tensor, name: str, severity: int) -> Tensor:
    """uint8 (N, 3, H, W) images, corrupted; the same every time.

    Args:
        images: at least 32 pixels wide and high.
        name: one of :func:`gradaug_det.evaluation.corruptions.corruption_names`.
        severity: 1 to 5.

    Raises:
        DataError: the images are smaller than the corruptions are defined for.
    """
    from imagecorruptions import corrupt

    if min(images.shape[-2:]) < SMALLEST_SIDE:
        raise DataError(
            f"corruptions need images of {SMALLEST_SIDE} pixels, these are {images.shape[-2:]}"
        )
    with seeded_corruptions(zlib.crc32(f"{name}/{severity}".encode())):
        corrupted = [
            corrupt(image, corruption_name=name, severity=severity)
            for image in images.permute(0, 2, 3, 1).contiguous().numpy()
        ]
    return torch.from_numpy(np.stack(corrupted)).permute(0, 3, 1, 2)


def corrupted_sets(
    images: Tensor,
    cache: str | Path,
    names: Sequence[str] | None = None,
    severities: Iterable[int] = SEVERITIES,
) -> dict[tuple[str, int], Tensor]:
    """All corruptions of the images: (name, severity) -> uint8 (N, 3, H, W).

    Args:
        cache: folder in which each set is kept, since some corruptions are slow.
    """
    digest = f"{zlib.crc32(images.numpy().tobytes()):08x}"
    sets = {}
    for name in names or corruption_names():
        for severity in severities:
            file = Path(cache) / f"{digest}-{name}-{severity}.npy"
            if not file.is_file():
                logger.info("corrupting: %s, severity %d", name, severity)
                with atomic_path(file) as temporary:
                    np.save(temporary, corrupt_images(images, name, severity).numpy())
            sets[name, severity] = torch.from_numpy(np.load(file, allow_pickle=False))
    return sets


def measure(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    corrupted: dict[tuple[str, int], Tensor],
    corrupted_labels: Tensor,
) -> dict[str, float]:
    """Accuracies in per cent.

    Returns:
        ``top1``, ``top5``, ``loss`` (cross-entropy); ``fgsm1``, ``fgsm2``, ``fgsm4``;
        ``corruption1`` to ``corruption5`` (mean over the corruptions of that severity),
        ``corruption`` (mean over all), ``corruption/NAME``.
    """
    logits = classify(model, images)
    found = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
    metrics = {
        "top1": 100 * found[:, 0].sum().item() / len(labels),
        "top5": 100 * found.sum().item() / len(labels),
        "loss": F.cross_entropy(logits, labels).item(),
    }
    for epsilon in EPSILONS:
        metrics[f"fgsm{epsilon}"] = fgsm_accuracy(model, images, labels, epsilon)
    each = {key: accuracy(model, part, corrupted_labels) for key, part in corrupted.items()}
    for severity in sorted({severity for _, severity in each}):
        metrics[f"corruption{severity}"] = fmean(v for (_, s), v in each.items() if s == severity)
    metrics["corruption"] = fmean(each.values())
    for name in dict.fromkeys(name for name, _ in each):
        metrics[f"corruption/{name}"] = fmean(v for (n, _), v in each.items() if n == name)
    return metrics
