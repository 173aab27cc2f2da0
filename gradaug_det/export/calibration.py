"""BatchNorm statistics of a narrow network: measured on images instead of cut from the full one's.

The full network's statistics are those of what its layers see, which in the narrow one are sums of
fewer channels.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torchvision.datasets.folder import IMG_EXTENSIONS

from gradaug_det.errors import ConfigError, DataError

logger = logging.getLogger(__name__)
# Statistics are those of a batch, whose images should differ as those of a training's batch do.
BATCH_SIZE = 8


def find_images(source: str | Path, count: int) -> list[Path]:
    """The first images of a folder (by name) or of a COCO-format json (by id).

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
    if source.is_dir():
        found = sorted(path for path in source.iterdir() if path.suffix.lower() in IMG_EXTENSIONS)
        if not found:
            known = ", ".join(IMG_EXTENSIONS)
            raise DataError(
                f"--calibrate: there is no image in {str(source)!r} (looked for {known})"
            )
    elif source.is_file():
        found = _images_of_json(source)
    else:
        raise DataError(
            f"--calibrate: {str(source)!r} does not exist; give images or a COCO-format json"
        )
    if len(found) < count:
        logger.warning("--images is %d, but %s has %d", count, source.name, len(found))
    return found[:count]


def _images_of_json(source: Path) -> list[Path]:
    try:
        images = json.loads(source.read_text("utf-8"))["images"]
        names = [image["file_name"] for image in sorted(images, key=lambda image: image["id"])]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"--calibrate: {str(source)!r} is not in COCO's format "
            f"({type(error).__name__}: {error}); give a folder of images or a json with "
            "images[].id and images[].file_name"
        ) from None
    if not names:
        raise DataError(f"--calibrate: {str(source)!r} lists no images")
    split = source.parent.parent / source.stem.removeprefix("instances_")
    for folder in (source.parent, split):
        if (folder / names[0]).is_file():
            break
    else:
        raise DataError(
            f"--calibrate: the first image of {source.name!r}, {names[0]!r}, is neither in "
            f"{source.parent} nor in {split}; give the folder of the images instead"
        )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"--calibrate: {len(missing)} images are missing in {str(folder)!r}: {missing[0]!r}"
        )
    return [folder / name for name in names]


def in_batches(items: Sequence, size: int = BATCH_SIZE) -> Iterator[Sequence]:
    """Batches of about the same size, none larger: a last small one would count as much."""
    count = -(-len(items) // size)
    for index in range(count):
        yield items[index * len(items) // count : (index + 1) * len(items) // count]


def has_statistics(backbone: nn.Module) -> bool:
    """Whether a norm of the backbone has running statistics, frozen or not."""
    return any(_has_statistics(layer) for layer in backbone.modules())


@torch.no_grad()
def recalibrate(backbone: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces the running statistics of the backbone's norms by the batches' average ones.

    Frozen norms' too: PyTorch's ``update_bn`` runs the backbone with BatchNorm layers in the
    places of all norms that have statistics, and what those measure is written to the norms.

    Args:
        backbone: in evaluation mode.
        batches: (N, C, H, W) each, as the backbone sees them.

    Raises:
        ConfigError: it has no norm with running statistics.
    """
    places = [
        (parent, name, layer)
        for parent in backbone.modules()
        for name, layer in parent.named_children()
        if _has_statistics(layer)
    ]
    if not places:
        raise ConfigError(
            "--calibrate", "needs norms with running statistics, and this backbone has none"
        )
    meters = [_meter(layer) for _, _, layer in places]
    try:
        for (parent, name, _), meter in zip(places, meters, strict=True):
            parent.add_module(name, meter)
        # Not the backbone itself: train() of some keeps their norms in evaluation mode.
        update_bn(batches, _Measured(meters, backbone))
    finally:
        for parent, name, layer in places:
            parent.add_module(name, layer)
    for (_, _, layer), meter in zip(places, meters, strict=True):
        layer.running_mean.copy_(meter.running_mean)
        layer.running_var.copy_(meter.running_var)


def _has_statistics(layer: nn.Module) -> bool:
    return getattr(layer, "running_mean", None) is not None


def _meter(layer: nn.Module) -> nn.BatchNorm2d:
    """A BatchNorm with the layer's scale and shift."""
    meter = nn.BatchNorm2d(len(layer.running_mean), eps=layer.eps).to(layer.running_mean.device)
    if layer.weight is not None:
        meter.weight.copy_(layer.weight)
        meter.bias.copy_(layer.bias)
    return meter


class _Measured(nn.Module):
    """The backbone, of whose layers only the meters are switched to training."""

    def __init__(self, meters: list[nn.Module], backbone: nn.Module) -> None:
        super().__init__()
        self.meters = nn.ModuleList(meters)
        self.run = backbone.forward

    def forward(self, images: Tensor) -> None:
        self.run(images)
