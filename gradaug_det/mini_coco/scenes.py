"""mini-COCO: detection and instance segmentation of garments in COCO format, from a seed."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
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
from gradaug_det.mini_coco.render import Instance, render_scene

logger = logging.getLogger(__name__)

SEGMENTATIONS = ("polygon", "rle", "mixed")

_FORMAT = 1  # raise it when the same arguments would give other files
_SPLITS = {"train": 0, "val": 1}  # the number is part of the random stream
_FIRST_IMAGE_ID = {"train": 1, "val": 1_000_001}  # ids are unique over both splits, as in COCO
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
    dev: bool = False,
    fashion_mnist: str | Path | None = None,
    jobs: int = 1,
    force: bool = False,
) -> Path:
    """Build the data set, or leave a finished build with the same arguments alone.

    Layout: ``annotations/instances_{train,val}.json``, ``{train,val}/<id>.png``,
    ``contact_sheet.png`` and ``build.json``. Categories 1..10 are `CLASS_NAMES`. The train images
    show garments of Fashion-MNIST's train split only, the val images (but see ``dev``) of its test
    split only; ``garment_id`` of an annotation (``garment_ids`` of a crowd) is the garment's
    position in what `load_garments` returns for that split. Ordinary instances have polygons,
    crowds uncompressed run lengths, as in COCO.

    An image depends on (seed, split, position) only: a build of 100 train images is the
    beginning of a build of 600. The directory appears under its name when it is complete.

    Args:
        out: the directory to make. Its parents are made too.
        train: number of train images, at least 1.
        val: number of val images, at least 1.
        seed: 0 or more.
        size: (H, W) of all images in pixels, 64 to 4096 each.
        segmentation: ``"polygon"`` for ordinary instances, as Detectron2's default needs;
            ``"rle"`` for compressed run lengths (needs pycocotools); ``"mixed"`` for half
            polygons, a quarter compressed, a quarter uncompressed run lengths.
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
    out = Path(out).expanduser().resolve()
    garments = _dev_garments(fashion_mnist) if dev else _all_garments(fashion_mnist)
    arguments = {
        "format": _FORMAT,
        "train": train,
        "val": val,
        "seed": seed,
        "size": list(size),
        "segmentation": segmentation,
        "garments_sha256": _garments_digest(garments),
        "dev": dev or None,  # not written if it is not one, as before there were dev builds
    }
    if is_finished(out, arguments, force):
        logger.info("%s already holds this build (seed %d); nothing to do.", out, seed)
        return out
    started = time.perf_counter()
    with new_directory(out, replace=force) as folder:
        for split, count in (("train", train), ("val", val)):
            painter = _Painter(folder / split, split, seed, tuple(size), garments[split])
            _write_split(folder, painter, count, segmentation, jobs)
        draw_contact_sheet(folder, folder / "contact_sheet.png", _SHEET_TILES, size)
        written = {name: value for name, value in arguments.items() if value is not None}
        write_build_file(folder, written)
    seconds = time.perf_counter() - started
    logger.info("Built %s: %d train and %d val images in %.1f s.", out, train, val, seconds)
    return out


def _check_arguments(
    train: int, val: int, seed: int, size: tuple[int, int], segmentation: str, jobs: int
) -> None:
    for name, value, least in (("train", train, 1), ("val", val, 1), ("seed", seed, 0)):
        if value < least:
            raise ConfigError(name, f"{value} is out of range; use {least} or more")
    if jobs < 1:
        raise ConfigError("jobs", f"{jobs} is out of range; use 1 or more")
    if max(train, val) >= _FIRST_IMAGE_ID["val"]:
        raise ConfigError(
            "train, val", f"{train}, {val} are too many: at most 1000000 images a split"
        )
    if len(size) != 2 or not all(64 <= side <= 4096 for side in size):
        raise ConfigError("size", f"{size!r} is out of range; use (H, W) with 64..4096 pixels each")
    if segmentation not in SEGMENTATIONS:
        raise ConfigError(
            "segmentation", f"{segmentation!r} is unknown; use one of {SEGMENTATIONS}"
        )


@dataclass(frozen=True)
class _Garments:
    """The garments that a split's images show.

    Args:
        images: (N, 28, 28) uint8.
        labels: (N,) uint8.
        positions: (N,) in what `load_garments` returned.
    """

    images: np.ndarray
    labels: np.ndarray
    positions: np.ndarray

    def take(self, chosen: np.ndarray) -> _Garments:
        return _Garments(self.images[chosen], self.labels[chosen], self.positions[chosen])


def _load(split: str, fashion_mnist: str | Path | None) -> _Garments:
    images, labels = load_garments(split, fashion_mnist)
    return _Garments(images, labels, np.arange(len(labels)))


def _all_garments(fashion_mnist: str | Path | None) -> dict[str, _Garments]:
    return {split: _load(split, fashion_mnist) for split in _SPLITS}


def _dev_garments(fashion_mnist: str | Path | None) -> dict[str, _Garments]:
    garments = _load("train", fashion_mnist)
    ours = np.zeros(len(garments.labels), bool)
    for label in np.unique(garments.labels):
        members = np.flatnonzero(garments.labels == label)
        ours[members[: round(_DEV_SHARE * len(members))]] = True
    if ours.all() or not ours.any():
        raise DataError(
            f"{len(ours)} train garments are too few for a dev build, which splits each class's"
        )
    return {"train": garments.take(ours), "val": garments.take(~ours)}


@dataclass(frozen=True)
class _Painter:
    """Draws and saves image ``index`` of a split; called in this process or in others."""

    folder: Path
    split: str
    seed: int
    size: tuple[int, int]
    garments: _Garments

    def image_id(self, index: int) -> int:
        return _FIRST_IMAGE_ID[self.split] + index

    def __call__(self, index: int) -> list[Instance]:
        rng = np.random.default_rng([self.seed, _SPLITS[self.split], index])
        garments = self.garments
        image, instances = render_scene(rng, garments.images, garments.labels, self.size)
        # Noise hardly compresses: level 2 takes a quarter of the default's time, for 5 % more.
        path = self.folder / _file_name(self.image_id(index))
        Image.fromarray(image).save(path, compress_level=2)
        return instances


def _file_name(image_id: int) -> str:
    return f"{image_id:012d}.png"


def _write_split(folder: Path, painter: _Painter, count: int, segmentation: str, jobs: int) -> None:
    painter.folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index, instances in enumerate(_paint(painter, count, jobs)):
        image_id = painter.image_id(index)
        height, width = painter.size
        images.append(
            {
                "id": image_id,
                "file_name": _file_name(image_id),
                "width": width,
                "height": height,
                "license": 1,
            }
        )
        for instance in instances:
            number = len(annotations) + 1  # pycocotools takes id 0 for "no match"
            annotations.append(
                _annotation(instance, number, image_id, segmentation, painter.garments.positions)
            )
    content = {
        "info": {
            "description": f"mini-COCO {painter.split}: Fashion-MNIST garments, gradaug_det",
            "version": str(_FORMAT),
        },
        "licenses": [
            {
                "id": 1,
                "name": "MIT (Fashion-MNIST, Zalando SE)",
                "url": "https://github.com/zalandoresearch/fashion-mnist",
            }
        ],
        "categories": [
            {"id": label + 1, "name": name, "supercategory": "garment"}
            for label, name in enumerate(CLASS_NAMES)
        ],
        "images": images,
        "annotations": annotations,
    }
    path = folder / "annotations" / f"instances_{painter.split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")


def _paint(painter: _Painter, count: int, jobs: int) -> Iterator[list[Instance]]:
    jobs = min(jobs, count)
    if jobs == 1:
        yield from map(painter, range(count))
        return
    # Not fork: the caller may hold threads (PyTorch's, a data loader's).
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(painter, range(count), chunksize=math.ceil(count / (2 * jobs)))


def _annotation(
    instance: Instance, number: int, image_id: int, segmentation: str, positions: np.ndarray
) -> dict[str, Any]:
    kind = segmentation
    if instance.crowd:
        kind = "counts"
    elif segmentation == "mixed":
        kind = ("polygon", "polygon", "rle", "counts")[number % 4]
    shape = (
        mask_to_polygons(instance.mask)
        if kind == "polygon"
        else mask_to_rle(instance.mask, compressed=kind == "rle")
    )
    ids = positions[list(instance.garment_ids)].tolist()
    return {
        "id": number,
        "image_id": image_id,
        "category_id": instance.label + 1,
        "iscrowd": int(instance.crowd),
        "bbox": mask_to_box(instance.mask),
        "area": int(np.count_nonzero(instance.mask)),
        "segmentation": shape,
        **({"garment_ids": ids} if instance.crowd else {"garment_id": ids[0]}),
    }


def _garments_digest(garments: dict[str, _Garments]) -> str:
    digest = hashlib.sha256()
    for own in garments.values():
        digest.update(repr(own.images.shape).encode() + own.images.tobytes() + own.labels.tobytes())
    return digest.hexdigest()
