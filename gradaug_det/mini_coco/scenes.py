"""mini-COCO: detection and instance segmentation of garments in COCO format, from a seed."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gradaug_det.errors import ConfigError, DataError
from gradaug_det.mini_coco.build_directory import is_finished, new_directory, write_build_file
from gradaug_det.mini_coco.contact_sheet import draw_contact_sheet
from gradaug_det.mini_coco.garments import CLASS_NAMES, load_garments
from gradaug_det.mini_coco.masks import mask_to_box, mask_to_polygons, mask_to_rle
from gradaug_det.mini_coco.render import MAX_SCALE, MIN_SCALE, Instance, render_scene

logger = logging.getLogger(__name__)

SEGMENTATIONS = ("polygon", "rle", "mixed")

_FORMAT = 1  # raise it when the same arguments would give other files
_STREAMS = {"train": 0, "val": 1}  # part of what each image's randomness comes from
_MOST_IMAGES = 1_000_000
_FIRST_IMAGE_ID = {"train": 1, "val": 1 + _MOST_IMAGES}  # unique over both splits, as in COCO
_SHEET_TILES = {"train": 12, "val": 8}
_DEV_SHARE = 0.8  # of each class's train garments, for the train images of a dev build


def build_mini_coco(
    out: str | Path,
    train: int = 600,
    val: int = 400,
    seed: int = 0,
    size: tuple[int, int] = (192, 256),
    *,
    segmentation: str = "polygon",
    classes: Sequence[str] = CLASS_NAMES,
    min_scale: float = MIN_SCALE,
    dev: bool = False,
    fashion_mnist: str | Path | None = None,
    jobs: int = 1,
    force: bool = False,
) -> Path:
    """Builds the data set, or leaves a finished build with the same arguments alone.

    Layout: ``annotations/instances_{train,val}.json``, ``{train,val}/<id>.png``,
    ``contact_sheet.png`` and ``build.json``. Categories 1, 2, ... are ``classes``. The train images
    show garments of Fashion-MNIST's train split only, the val images (but see ``dev``) of its test
    split only; ``garment_id`` of an annotation (``garment_ids`` of a crowd) is the garment's
    position in what `load_garments` returns for that split. Ordinary instances have polygons,
    crowds uncompressed run lengths, as in COCO.

    An image depends on (seed, split, position) only: a build of 100 train images is the
    beginning of a build of 600. The directory appears under its name when it is complete.

    Args:
        out: the directory to make. Its parents are made too.
        train, val: number of images, at least 1.
        seed: 0 or more.
        size: (H, W) of all images in pixels, 64 to 4096 each.
        segmentation: ``"polygon"`` for ordinary instances, as Detectron2's default needs;
            ``"rle"`` for compressed run lengths; ``"mixed"`` for half polygons, a quarter
            compressed, a quarter uncompressed run lengths.
        classes: names of `CLASS_NAMES`: the garments that are shown, and their categories in order.
        min_scale: of the smallest garment, 0.7 (some 20 pixels) to 5 (the largest in 192x256).
        dev: for choosing settings: the val images too show garments of Fashion-MNIST's train split,
            the last fifth of each class, and the train images the others. So nothing is chosen on
            garments that results are reported on.
        fashion_mnist: the full Fashion-MNIST, see `load_garments`; None: the embedded subset.
        jobs: processes that draw; the result is the same. With more than one, a script must call
            this under ``if __name__ == "__main__"``.
        force: replace a directory that this function made, whatever its arguments were.

    Returns:
        The absolute path of the directory.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the directory holds something else, or the garments cannot be read.
    """
    _check_arguments(train, val, seed, size, segmentation, jobs)
    _check_scenes(classes, min_scale)
    out = Path(out).expanduser().resolve()
    splits = _dev_splits(fashion_mnist) if dev else _splits(fashion_mnist)
    splits = [split.only(classes) for split in splits]
    arguments = {
        "format": _FORMAT,
        "train": train,
        "val": val,
        "seed": seed,
        "size": list(size),
        "segmentation": segmentation,
        "garments_sha256": _hash_garments(splits),
        # Not written where they are the defaults, as before there were such builds.
        "dev": dev or None,
        "classes": list(classes) if tuple(classes) != CLASS_NAMES else None,
        "min_scale": min_scale if min_scale != MIN_SCALE else None,
    }
    if is_finished(out, arguments, force):
        logger.info("%s already holds this build (seed %d); nothing to do.", out, seed)
        return out
    started = time.perf_counter()
    with new_directory(out, replace=force) as folder:
        (folder / "annotations").mkdir()
        for split, count in zip(splits, (train, val), strict=True):
            (folder / split.name).mkdir()
            draw = partial(_draw_image, split, folder, seed, size, min_scale)
            drawn = _draw_all(draw, count, jobs)
            content = _describe(split, drawn, size, segmentation, classes)
            text = json.dumps(content, separators=(",", ":")) + "\n"
            path = folder / "annotations" / f"instances_{split.name}.json"
            path.write_text(text, encoding="utf-8")
        draw_contact_sheet(folder, folder / "contact_sheet.png", _SHEET_TILES)
        written = {name: value for name, value in arguments.items() if value is not None}
        write_build_file(folder, written)
    seconds = time.perf_counter() - started
    logger.info("Built %s: %d train and %d val images in %.1f s.", out, train, val, seconds)
    return out


def _check_arguments(
    train: int, val: int, seed: int, size: tuple[int, int], segmentation: str, jobs: int
) -> None:
    counts = {"train": train, "val": val, "seed": seed, "jobs": jobs}
    for name, value in counts.items():
        least = 0 if name == "seed" else 1
        if value < least:
            raise ConfigError(name, f"{value} is out of range; use {least} or more")
        if name in _STREAMS and value > _MOST_IMAGES:
            raise ConfigError(name, f"{value} is out of range; use {_MOST_IMAGES} or less")
    if len(size) != 2 or not all(64 <= side <= 4096 for side in size):
        raise ConfigError("size", f"{size!r} is out of range; use (H, W) with 64..4096 pixels each")
    if segmentation not in SEGMENTATIONS:
        problem = f"{segmentation!r} is unknown; use one of {SEGMENTATIONS}"
        raise ConfigError("segmentation", problem)


def _check_scenes(classes: Sequence[str], min_scale: float) -> None:
    unknown = [name for name in classes if name not in CLASS_NAMES]
    if unknown or not classes or len(set(classes)) < len(classes):
        problem = f"{list(classes)!r}: use one or more of {list(CLASS_NAMES)}, each once"
        raise ConfigError("classes", problem)
    if not MIN_SCALE <= min_scale <= MAX_SCALE:
        problem = f"{min_scale} is out of range; use {MIN_SCALE} to {MAX_SCALE}"
        raise ConfigError("min_scale", problem)


@dataclass(frozen=True)
class _Split:
    """The garments that a split's images show; sent to the processes that draw."""

    name: str
    images: np.ndarray  # (N, 28, 28) uint8
    labels: np.ndarray  # (N,) uint8
    positions: np.ndarray  # (N,) in what `load_garments` returned

    def only(self, classes: Sequence[str]) -> _Split:
        """Returns the garments of these classes, or raises DataError if there are none."""
        kept = np.isin(self.labels, [CLASS_NAMES.index(name) for name in classes])
        if not kept.any():
            raise DataError(
                f"no {self.name} image of Fashion-MNIST shows one of {list(classes)}: choose other "
                "`classes`, or give the complete files"
            )
        return _Split(self.name, self.images[kept], self.labels[kept], self.positions[kept])


def _splits(fashion_mnist: str | Path | None) -> list[_Split]:
    loaded = {name: load_garments(name, fashion_mnist) for name in _STREAMS}
    return [_Split(name, *own, np.arange(len(own[1]))) for name, own in loaded.items()]


def _dev_splits(fashion_mnist: str | Path | None) -> list[_Split]:
    """Returns the first garments of each class in the train split, and the last of each."""
    images, labels = load_garments("train", fashion_mnist)
    in_train = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        in_train[members[: round(_DEV_SHARE * len(members))]] = True
    if in_train.all() or not in_train.any():
        raise DataError(
            f"{len(labels)} train garments are too few for a dev build, which splits each class's"
        )
    positions = {"train": np.flatnonzero(in_train), "val": np.flatnonzero(~in_train)}
    return [_Split(name, images[own], labels[own], own) for name, own in positions.items()]


def _hash_garments(splits: list[_Split]) -> str:
    digest = hashlib.sha256()
    for own in splits:
        digest.update(repr(own.images.shape).encode() + own.images.tobytes() + own.labels.tobytes())
    return digest.hexdigest()


def _draw_all(draw: partial[list[Instance]], count: int, jobs: int) -> Iterator[list[Instance]]:
    jobs = min(jobs, count)
    if jobs == 1:
        yield from map(draw, range(count))
        return
    # Not fork: the caller may hold threads (PyTorch's, a data loader's).
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(draw, range(count), chunksize=math.ceil(count / (2 * jobs)))


def _draw_image(
    split: _Split, folder: Path, seed: int, size: tuple[int, int], min_scale: float, index: int
) -> list[Instance]:
    """Draws and saves an image, which depends on (seed, split, index) only."""
    rng = np.random.default_rng([seed, _STREAMS[split.name], index])
    image, instances = render_scene(rng, split.images, split.labels, size, min_scale)
    # Noise hardly compresses: level 2 takes a quarter of the default's time, for 5 % more.
    path = folder / split.name / _file_name(_FIRST_IMAGE_ID[split.name] + index)
    Image.fromarray(image).save(path, compress_level=2)
    return instances


def _file_name(image_id: int) -> str:
    return f"{image_id:012d}.png"


def _describe(
    split: _Split,
    drawn: Iterable[list[Instance]],
    size: tuple[int, int],
    segmentation: str,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Returns the content of the split's annotation file."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories = {CLASS_NAMES.index(name): number for number, name in enumerate(classes, start=1)}
    for image_id, instances in enumerate(drawn, start=_FIRST_IMAGE_ID[split.name]):
        record = {"id": image_id, "file_name": _file_name(image_id), "width": size[1]}
        images.append(record | {"height": size[0], "license": 1})
        for instance in instances:
            number = len(annotations) + 1  # pycocotools takes id 0 for "no match"
            ids = split.positions[list(instance.garment_ids)].tolist()
            annotation = {
                "id": number,
                "image_id": image_id,
                "category_id": categories[instance.label],
                "iscrowd": int(instance.crowd),
                "bbox": mask_to_box(instance.mask),
                "area": int(np.count_nonzero(instance.mask)),
                "segmentation": _segment(instance, number, segmentation),
            }
            garments = {"garment_ids": ids} if instance.crowd else {"garment_id": ids[0]}
            annotations.append(annotation | garments)
    licence = {"id": 1, "name": "MIT (Fashion-MNIST, Zalando SE)"}
    return {
        "info": {
            "description": f"mini-COCO {split.name}: Fashion-MNIST garments, gradaug_det",
            "version": str(_FORMAT),
        },
        "licenses": [licence | {"url": "https://github.com/zalandoresearch/fashion-mnist"}],
        "categories": [
            {"id": number, "name": CLASS_NAMES[label], "supercategory": "garment"}
            for label, number in categories.items()
        ],
        "images": images,
        "annotations": annotations,
    }


def _segment(
    instance: Instance, number: int, segmentation: str
) -> list[list[float]] | dict[str, Any]:
    if instance.crowd:
        return mask_to_rle(instance.mask, compressed=False)
    if segmentation == "mixed":
        segmentation = ("polygon", "polygon", "rle", "counts")[number % 4]
    if segmentation == "polygon":
        return mask_to_polygons(instance.mask)
    return mask_to_rle(instance.mask, compressed=segmentation == "rle")
