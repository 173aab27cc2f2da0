"""BatchNorm statistics of a narrow network: measured on images instead of cut from the full one's.

The full network's statistics are those of what its layers see, which in the narrow one are sums of
fewer channels.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.datasets.folder import IMG_EXTENSIONS

from gradaug_det.errors import ConfigError, DataError
from gradaug_det.utils.files import read_json

logger = logging.getLogger(__name__)
# Statistics are those of a batch, whose images should differ as those of a training's batch do.
BATCH_SIZE = 8


def find_images(source: str | Path, count: int) -> list[Path]:
    """Returns the first images of a folder (by name) or of a COCO-format json (by id).

    Args:
        source: a folder of images; or a json whose images lie beside it, or, where it is
            ``annotations/instances_SPLIT.json``, in ``SPLIT/`` beside ``annotations/``.
        count: how many.

    Raises:
        ConfigError: the count is below 1.
        DataError: there is no such source, or no image in it; or an image is missing.
    """
    source = Path(source)
    if count < 1:
        raise ConfigError("--images", f"must be 1 or more, got {count}")
    if not source.exists():
        raise DataError(
            f"--calibrate: {str(source)!r} does not exist; give images or a COCO-format json"
        )
    if source.is_dir():
        found = sorted(path for path in source.iterdir() if path.suffix.lower() in IMG_EXTENSIONS)
    else:
        found = _images_of_json(source)
    if not found:
        known = ", ".join(IMG_EXTENSIONS)
        raise DataError(f"--calibrate: there is no image in {str(source)!r} (looked for {known})")
    if len(found) < count:
        logger.warning("--images is %d, but %s has %d", count, source.name, len(found))
    return found[:count]


def _images_of_json(source: Path) -> list[Path]:
    try:
        images = sorted(read_json(source)["images"], key=lambda image: image["id"])
        names = [image["file_name"] for image in images]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"--calibrate: {str(source)!r} is not in COCO's format "
            f"({type(error).__name__}: {error}); give a folder of images or a json with "
            "images[].id and images[].file_name"
        ) from None
    folders = (source.parent, source.parent.parent / source.stem.removeprefix("instances_"))
    paths = []
    for name in names:
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is None:
            raise DataError(
                f"--calibrate: an image of {source.name!r}, {name!r}, is neither in {folders[0]} "
                f"nor in {folders[1]}; give the folder of the images instead"
            )
        paths.append(path)
    return paths


def split_evenly(items: Sequence, size: int = BATCH_SIZE) -> Iterator[Sequence]:
    """Yields batches of about the same size, none larger: a small last one would count as much."""
    count = -(-len(items) // size)
    for index in range(count):
        yield items[index * len(items) // count : (index + 1) * len(items) // count]


def find_norms(backbone: nn.Module) -> list[nn.Module]:
    """Returns the norms of a backbone that have running statistics, frozen or not."""
    return [
        layer for layer in backbone.modules() if getattr(layer, "running_mean", None) is not None
    ]


@torch.no_grad()
def recalibrate(backbone: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces the running statistics of the backbone's norms by the batches' average ones.

    Args:
        backbone: in evaluation mode.
        batches: (N, C, H, W) each, as the backbone sees them.

    Raises:
        ConfigError: it has no norm with running statistics.
    """
    norms = find_norms(backbone)
    if not norms:
        raise ConfigError(
            "--calibrate", "needs norms with running statistics, and this backbone has none"
        )
    meters, handles = [], []
    for norm in norms:
        # Without momentum it averages over all batches, as PyTorch's update_bn does; which cannot
        # be used itself, as frozen norms are no BatchNorm layers that it would find.
        meter = nn.BatchNorm2d(len(norm.running_mean), eps=norm.eps, momentum=None)
        meter.to(norm.running_mean.device)
        if norm.weight is not None:
            meter.weight.copy_(norm.weight)
            meter.bias.copy_(norm.bias)
        meters.append(meter)
        # What a forward hook returns replaces the output: layers after it see measured statistics.
        handles.append(norm.register_forward_hook(lambda _, x, __, meter=meter: meter(*x)))
    try:
        for images in batches:
            backbone(images)
    finally:
        for handle in handles:
            handle.remove()
    for norm, meter in zip(norms, meters, strict=True):
        norm.running_mean.copy_(meter.running_mean)
        norm.running_var.copy_(meter.running_var)
