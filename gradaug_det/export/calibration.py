"""BatchNorm statistics of a narrow network: measured on images instead of cut from the full one's.

The full network's statistics are those of what its layers see, which in the narrow one are sums of
fewer channels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.datasets.folder import IMG_EXTENSIONS

from gradaug_det.errors import ConfigError, DataError
from gradaug_det.utils.files import read_json

logger = logging.getLogger(__name__)
# Statistics are those of a batch, whose images should differ as those of a training's batch do.
BATCH_SIZE = 8


def find_images(source: str | Path, count: int, key: str = "--images") -> list[Path]:
    """Returns the first images of a folder (by name) or of a COCO-format json (by id).

    Args:
        source: a folder of images; or a json whose images lie beside it, or, where it is
            ``annotations/instances_SPLIT.json``, in ``SPLIT/`` beside ``annotations/``.
        count: how many; given by the argument ``key``.

    Raises:
        ConfigError: the count is below 1.
        DataError: there is no such source, or no image in it; or an image is missing.
    """
    source = Path(source)
    if count < 1:
        raise ConfigError(key, f"must be 1 or more, got {count}")
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
        logger.warning("%s is %d, but %s has %d", key, count, source.name, len(found))
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


def read_batches(images: Sequence[Path], read: Callable[[Path], Any]) -> Iterator[list[Any]]:
    """Yields what ``read`` makes of each image, in batches.

    Raises:
        DataError: an image cannot be read.
    """
    for files in split_evenly(images):
        batch = []
        for file in files:
            try:
                batch.append(read(file))
            except Exception as error:  # of whatever reads images there
                problem = f"{str(file)!r} cannot be read: {type(error).__name__}: {error}"
                raise DataError(f"--calibrate: {problem}") from error
        yield batch


def find_norms(backbone: nn.Module) -> list[nn.Module]:
    """Returns the norms of a backbone that have running statistics, frozen or not."""
    return [
        layer for layer in backbone.modules() if getattr(layer, "running_mean", None) is not None
    ]


class Moments(NamedTuple):
    """Mean and standard deviation (C,) of a norm's outputs, before its weight and bias."""

    mean: Tensor
    std: Tensor


@torch.no_grad()
def measure_moments(backbone: nn.Module, batches: Iterable[Tensor]) -> list[Moments]:
    """Measures what each of a backbone's norms makes of its inputs with the statistics it has.

    Frozen statistics need not be those of the inputs: the weights have learned to live with that.

    Args:
        backbone: in evaluation mode.
        batches: (N, C, H, W) each, as the backbone sees them.
    """
    norms = find_norms(backbone)
    found = []
    for norm, meter in zip(norms, _measure(backbone, norms, batches), strict=True):
        scale = (norm.running_var + norm.eps).sqrt()
        # From above 0: a channel without a spread would get statistics that are infinite.
        std = (meter.running_var.sqrt() / scale).clamp(min=1e-3)
        found.append(Moments((meter.running_mean - norm.running_mean) / scale, std))
    return found


def statistics_of(backbone: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Returns the running mean and variance (C,) of each of a backbone's norms."""
    return [(norm.running_mean, norm.running_var) for norm in find_norms(backbone)]


def use_statistics(backbone: nn.Module, statistics: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Replaces the running statistics of a backbone's norms, as :func:`recalibrate` does."""
    for norm, (mean, var) in zip(find_norms(backbone), statistics, strict=True):
        # Not copied into the tensors: those of a sub-network are views of the full network's.
        norm.running_mean, norm.running_var = mean, var


@torch.no_grad()
def recalibrate(
    backbone: nn.Module, batches: Iterable[Tensor], moments: Sequence[Moments] | None = None
) -> None:
    """Replaces the running statistics of the backbone's norms by what is measured on the batches.

    Args:
        backbone: in evaluation mode. Inside :func:`gradaug_det.core.slimming.at_width` the
            sub-network's statistics are replaced, until the end of that block.
        batches: (N, C, H, W) each, as the backbone sees them.
        moments: of the full network, from :func:`measure_moments`. The statistics then give each
            norm's outputs these moments, those of the first channels; by default, statistics are
            the batches' average ones.

    Raises:
        ConfigError: it has no norm with running statistics.
    """
    norms = find_norms(backbone)
    if not norms:
        raise ConfigError(
            "--calibrate", "needs norms with running statistics, and this backbone has none"
        )
    wanted = None
    if moments is not None:
        counts = [len(norm.running_mean) for norm in norms]
        wanted = [
            Moments(mean[:count], std[:count])
            for count, (mean, std) in zip(counts, moments, strict=True)
        ]
    statistics = []
    for index, meter in enumerate(_measure(backbone, norms, batches, wanted, replace=True)):
        mean, var = meter.running_mean, meter.running_var
        if wanted is not None:
            scale = (var + meter.eps).sqrt() / wanted[index].std
            mean, var = mean - wanted[index].mean * scale, (scale**2 - meter.eps).clamp(min=0)
        statistics.append((mean, var))
    use_statistics(backbone, statistics)


def _measure(
    backbone: nn.Module,
    norms: Sequence[nn.Module],
    batches: Iterable[Tensor],
    wanted: Sequence[Moments] | None = None,
    *,
    replace: bool = False,
) -> list[nn.BatchNorm2d]:
    """Returns, for each norm, one in training mode that has seen the same inputs.

    Args:
        wanted: of the outputs before weight and bias; by default mean 0 and deviation 1.
        replace: whether layers after a norm see the outputs of the measuring one.
    """
    meters = []
    with ExitStack() as hooks:
        for index, norm in enumerate(norms):
            # Without momentum it averages over all batches, as PyTorch's update_bn does; which
            # cannot be used itself, as frozen norms are no BatchNorm layers that it would find.
            meter = nn.BatchNorm2d(len(norm.running_mean), eps=norm.eps, momentum=None)
            meter.to(norm.running_mean.device)
            if norm.weight is not None:
                meter.weight.copy_(norm.weight)
                meter.bias.copy_(norm.bias)
            if wanted is not None:
                meter.bias += meter.weight * wanted[index].mean
                meter.weight *= wanted[index].std
            meters.append(meter)

            def measure(_: nn.Module, x: tuple, __: Tensor, meter: nn.Module = meter) -> Any:
                measured = meter(*x)
                return measured if replace else None  # what a hook returns replaces the output

            hooks.enter_context(norm.register_forward_hook(measure))
        for images in batches:
            try:
                backbone(images)
            except ValueError as error:  # of a batch norm that sees one number a channel
                raise DataError(
                    f"--calibrate: images of {tuple(images.shape)} are too few or too small to "
                    f"measure statistics on: {error}"
                ) from None
    return meters
